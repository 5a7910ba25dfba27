"""A graph's hop as its client sees it."""

from __future__ import annotations

from shoal.client.graph.graph_hop import GraphHop
from shoal.errors import ChannelClosed
from shoal.models.graph.manifest import GRAPH_NUMERICS
from shoal.net.channel import Channel
from shoal.net.outbox import CONTROL_LIMIT
from shoal.testing.memory import pipe_pair
from shoal.types import PeerId, Span
from shoal.wire.fetching import NotFetched

from .conftest import Imported


async def test_a_session_with_a_peer_that_reads_nothing_is_closed_without_an_error(
    imported: Imported,
) -> None:
    graph = imported("mlp")
    ours, _ = pipe_pair(PeerId("us"), PeerId("them"))
    channel = Channel(ours)  # it does not run: nothing that is sent leaves
    for number in range(CONTROL_LIMIT):
        channel.reply(NotFetched(number, "busy", ""))
    hop = GraphHop(channel, graph.digest, graph.manifest, Span(0, 8), GRAPH_NUMERICS)
    hop.close()
    assert isinstance(hop.lost, ChannelClosed)
    assert channel.closed
    hop.close()  # and of one that is closed
