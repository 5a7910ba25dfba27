"""A graph's manifest from whoever serves the graph; it is what it says by its hash."""

from __future__ import annotations

from collections.abc import Sequence

from shoal.client.graph.known_graph import KnownGraph
from shoal.errors import BadWeights, ChannelClosed, RemoteProtocolError, ShoalError, UnknownModel
from shoal.models.graph.manifest import MAX_GRAPH_MANIFEST, graph_digest, read_graph_manifest
from shoal.sharing.peer_fetcher import PieceSource
from shoal.swarm.announcement import Announcement
from shoal.types import Digest, PeerAddress
from shoal.wire.fetching import MAX_PIECE


async def fetch_graph(
    source: PieceSource, digest: Digest, serving: Sequence[Announcement], piece_within_s: float
) -> KnownGraph:
    """The graph of that digest, from the first of those who serve it that gives its manifest.

    Raises:
        ShoalError: nobody does; why the last one did not.
    """
    last: ShoalError | None = None
    for announcement in serving:
        try:
            raw = await _fetch_raw(source, announcement.address, piece_within_s)
            if graph_digest(raw) != digest:
                raise RemoteProtocolError(f"{announcement.peer} gave the manifest of another graph")
            manifest = read_graph_manifest(raw)
        except ShoalError as error:
            last = error
            continue
        name = announcement.served.model if announcement.served else digest
        return KnownGraph(manifest, manifest.shape(name, digest))
    raise last or ChannelClosed("who served the graph is gone")


async def _fetch_raw(source: PieceSource, address: PeerAddress, piece_within_s: float) -> bytes:
    raw = bytearray()
    while len(raw) <= MAX_GRAPH_MANIFEST:
        try:
            piece = await source.fetch(
                address, "manifest", 0, len(raw) // MAX_PIECE, deadline_s=piece_within_s
            )
        except UnknownModel:
            if raw:  # the last piece was a whole one
                return bytes(raw)
            raise
        raw += piece
        if len(piece) < MAX_PIECE:
            return bytes(raw)
    raise BadWeights("a graph's manifest: it is too long")
