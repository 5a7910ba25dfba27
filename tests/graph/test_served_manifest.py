"""A graph's manifest in pieces, from whoever serves the graph: the whole of it, of its digest, or nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.client.graph import served_manifest
from shoal.client.graph.served_manifest import fetch_graph
from shoal.errors import BadWeights, Busy, ChannelClosed, RemoteProtocolError, UnknownModel
from shoal.swarm.announcement import Announcement
from shoal.types import Digest, PeerAddress
from shoal.wire.fetching import FetchPart

from .conftest import Imported

Piece = Callable[[int], bytes]


class Servers:
    """Peers by their names, each with what it gives for a piece's number."""

    def __init__(self, **gives: Piece) -> None:
        self.gives = gives
        self.asked: list[tuple[str, int]] = []

    @property
    def serving(self) -> list[Announcement]:
        return [Announcement(name, 1, 0.0, 30.0, (), (), None) for name in self.gives]

    async def fetch(
        self, address: PeerAddress, part: FetchPart, item: int = 0, index: int = 0, *, deadline_s: float
    ) -> bytes:
        assert (part, item) == ("manifest", 0)
        self.asked.append((address.peer, index))
        return self.gives[address.peer](index)


def pieces(raw: bytes, size: int) -> Piece:
    """As a node gives them: past the end there is nothing."""

    def give(index: int) -> bytes:
        if piece := raw[index * size : (index + 1) * size]:
            return piece
        raise UnknownModel("only the manifest is given")

    return give


def raising(error: Exception) -> Piece:
    def give(index: int) -> bytes:
        raise error

    return give


@pytest.mark.parametrize("pieces_whole", [True, False])
async def test_a_manifest_is_put_together_from_its_pieces(
    imported: Imported, monkeypatch: pytest.MonkeyPatch, pieces_whole: bool
) -> None:
    """Also where its last piece is a whole one, so that only the next shows the end."""
    graph = imported("mlp")
    length = len(graph.raw)
    sizes = range(length // 2, 0, -1)
    size = next(size for size in sizes if (length % size == 0) == pieces_whole)
    monkeypatch.setattr(served_manifest, "MAX_PIECE", size)
    servers = Servers(a=pieces(graph.raw, size))
    found = await fetch_graph(servers, graph.digest, servers.serving, 1.0)
    assert (found.manifest, found.digest) == (graph.manifest, graph.digest)
    assert [index for _, index in servers.asked] == list(range(length // size + 1))


async def test_who_gives_another_graph_or_nothing_is_passed_over(imported: Imported) -> None:
    graph, other = imported("mlp"), imported("cnn")
    servers = Servers(
        liar=lambda _: other.raw,
        gone=raising(ChannelClosed("gone")),
        honest=lambda _: graph.raw,
        spare=lambda _: graph.raw,
    )
    assert (await fetch_graph(servers, graph.digest, servers.serving, 1.0)).digest == graph.digest
    assert [peer for peer, _ in servers.asked] == ["liar", "gone", "honest"]


@pytest.mark.parametrize(
    ("give", "error", "why"),
    [
        (lambda _: b"{}", RemoteProtocolError, "another graph"),
        (raising(UnknownModel("no such")), UnknownModel, "no such"),
        (lambda _: b"x" * 1024, BadWeights, "too long"),
        (lambda index: b"x" * 1024 if not index else raising(Busy("later"))(index), Busy, "later"),
    ],
)
async def test_where_nobody_gives_it_the_last_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, give: Piece, error: type[Exception], why: str
) -> None:
    monkeypatch.setattr(served_manifest, "MAX_PIECE", 1024)
    monkeypatch.setattr(served_manifest, "MAX_GRAPH_MANIFEST", 4096)
    servers = Servers(a=give)
    with pytest.raises(error, match=why):
        await fetch_graph(servers, Digest("sha256:" + "0" * 64), servers.serving, 1.0)
    assert len(servers.asked) <= 5


async def test_where_nobody_serves_it_any_more_that_is_said() -> None:
    with pytest.raises(ChannelClosed, match="who served the graph is gone"):
        await fetch_graph(Servers(), Digest("sha256:" + "0" * 64), [], 1.0)
