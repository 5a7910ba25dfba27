"""What a node measures of itself, as Prometheus reads it and as ``shoal status --trace`` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
import trio

from shoal.metrics.meters import MEDIA_TYPE, Reading
from shoal.metrics.trace import Trace
from shoal.net.pool import ChannelPool
from shoal.node.endpoint import EndpointPage
from shoal.swarm.coverage import coverage

if TYPE_CHECKING:
    from shoal.node.node import Node


def pages(node: Node, traces: Mapping[str, Trace] = MappingProxyType({})) -> dict[str, EndpointPage]:
    """What the node shows over HTTP: ``/metrics``, and to this machine alone ``/trace``.

    Args:
        traces: beside the node's own, by name, for example that of a client in the same process.
    """
    metrics = node.server.load.metrics
    metrics.read_from(lambda: (*_serving(node), *_swarm(node)))
    return {
        "/metrics": EndpointPage(metrics.text, MEDIA_TYPE),
        "/trace": EndpointPage(lambda: _traces(node, traces), "application/json", local=True),
    }


def _serving(node: Node) -> Iterable[Reading]:
    engine = node.engine
    span = {"model": node.model.shape.name, "start": str(node.span.start), "end": str(node.span.end)}
    yield Reading("shoal_span_blocks", "Blocks that are served here.", len(node.span), span)
    found = asdict(engine.capabilities)
    found["trains"] = not found.pop("untrainable")  # the reason is for who asks to train
    can = {name: "yes" if value else "no" for name, value in found.items()}
    how = "Always 1. How steps are computed: batched, able to roll back to any position, exact as fp32."
    yield Reading("shoal_runner", how, 1, can | {"format": engine.format})
    yield Reading("shoal_sessions", "Sessions that are open here.", engine.sessions)
    yield Reading("shoal_queue_steps", "Steps that wait here or are being computed.", node.server.waiting)
    tokens = "Tokens of KV, by what they are."
    free = node.server.unheld_tokens
    yield Reading("shoal_kv_tokens", tokens, free, {"state": "free"})
    yield Reading("shoal_kv_tokens", tokens, engine.tokens - free, {"state": "used"})
    kept = "Sessions' KV that is kept for the next turn of a conversation; its room is free to others."
    yield Reading("shoal_kept_caches", kept, node.server.kept_caches)
    yield Reading("shoal_kv_pages", "Pages of KV that hold something.", engine.pool.taken)
    tasks = trio.lowlevel.current_statistics().tasks_living
    yield Reading("shoal_tasks", "Tasks of the event loop.", tasks)
    yield from channel_readings(node.server.channels)
    share = "Share of the time in which steps are computed: less while the machine is in use."
    yield Reading("shoal_share", share, node.watch.share)
    if node.watch.energy.joules:
        joules = "Energy that the steps computed here have taken, in joules."
        yield Reading("shoal_energy_joules", joules, node.watch.energy.joules, kind="counter")
        token = "Energy of a token through the span, in joules, over the last tokens."
        yield Reading("shoal_token_joules", token, node.watch.energy.token_joules)


def channel_readings(pool: ChannelPool) -> Iterable[Reading]:
    """Of the channels of any node."""
    yield Reading("shoal_unfinished_bytes", "Of messages that have begun to come.", pool.inbound.held)
    yield Reading("shoal_channels", "Channels to other peers.", len(pool.all()))
    moves = "Channels that went on over another pipe: a better way, or one in place of a way that was lost."
    yield Reading("shoal_channel_moves", moves, pool.moved, kind="counter")
    for way, count in (("in", pool.received), ("out", pool.sent)):
        yield Reading("shoal_bytes", "Bytes over channels.", count, {"way": way}, "counter")


def _swarm(node: Node) -> Iterable[Reading]:
    """Of other models nothing: whoever announces makes up as many as he likes, each a line for ever."""
    member, shape = node.member, node.model.shape
    yield Reading("shoal_peers", "Peers that serve something, this one among them.", len(member.directory))
    in_all = "Peers of the swarm, as far as is known: of a large one this machine has a part."
    yield Reading("shoal_swarm_peers", in_all, member.size.peers)
    connections = member.network.connections()
    yield Reading("shoal_connections", "libp2p connections.", len(connections))
    ahead = "How far this machine's clock is ahead of the swarm's, or of the peer's that differs most."
    yield Reading("shoal_clock_ahead_seconds", ahead, member.clock.ahead_s)
    serving = member.directory.serving(shape.digest, member.now())
    counts = coverage([a.served.span for a in serving if a.served], shape.n_blocks)
    for block, count in enumerate(counts):
        named = {"model": shape.name, "digest": shape.digest[7:19], "block": str(block)}
        yield Reading("shoal_coverage", "Peers that serve a block.", count, named)


def _traces(node: Node, traces: Mapping[str, Trace]) -> bytes:
    named = {"node": node.server.load.trace, **traces}
    shown = {name: {"steps": trace.steps, "reroutes": trace.reroutes} for name, trace in named.items()}
    member = node.member
    return msgspec.json.encode({"peer": member.network.peer, "clock": member.clock.doubts(), **shown})
