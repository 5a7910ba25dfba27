"""The swarm as the page draws it. Pure: made from announcements, connections and round trips."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from shoal.net.network import PeerConnection
from shoal.swarm.announcement import Announcement
from shoal.swarm.directory import by_model, coverage, in_one_format, in_order
from shoal.types import PeerId, gaps


def swarm_view(
    swarm: str,
    ourselves: PeerId,
    announcements: Iterable[Announcement],
    connections: Sequence[PeerConnection],
    rtt_s: Mapping[PeerId, float | None],
    routes: Iterable[Sequence[Mapping[str, Any]]],
    now: float,
) -> dict[str, Any]:
    """Peers, the links between them that are known here, and each model's coverage.

    Args:
        routes: those of recent requests: hop after hop sends to the next.
        now: by the clock of the announcements, seconds since the epoch.
    """
    alive = in_order(a for a in announcements if a.served)
    paths = {connection.peer: connection.path for connection in connections}
    peers = [_peer(a, ourselves, paths.get(PeerId(a.peer)), rtt_s.get(PeerId(a.peer)), now) for a in alive]
    return {
        "peer": ourselves,
        "swarm": swarm,
        "at": now,
        "peers": peers,
        "links": _links(ourselves, peers, routes),
        "models": _models(alive),
    }


def _peer(
    a: Announcement, ourselves: PeerId, path: str | None, rtt_s: float | None, now: float
) -> dict[str, Any]:
    served = a.served
    assert served is not None  # others are not shown
    return {
        "peer": a.peer,
        "agent": a.agent,
        "path": path or "none",
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 3),
        "me": a.peer == ourselves,
        "expires_in_s": round(max(0.0, a.expires - now), 1),
        "model": served.model,
        "digest": served.digest,
        "start": served.start,
        "end": served.end,
        "n_blocks": served.n_blocks,
        "format": served.format,
        "tokens": served.tokens,
        "tokens_free": served.tokens_free,
        "sessions": served.sessions,
        "step_ms": round(served.step_ms, 3),
    }


def _links(
    ourselves: PeerId, peers: Sequence[Mapping[str, Any]], routes: Iterable[Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Ours to each peer that we reach, and those that recent answers went over."""
    here = {peer["peer"] for peer in peers}
    links = {
        (str(ourselves), str(peer["peer"])): {"rtt_ms": peer["rtt_ms"], "path": peer["path"]}
        for peer in peers
        if peer["path"] != "none" or peer["rtt_ms"] is not None
    }
    for route in routes:
        for a, b in pairwise(stage["peer"] for stage in route):
            if a != b and {a, b} <= here:
                links.setdefault((a, b), {"rtt_ms": None, "path": "direct"})
    return [{"a": a, "b": b, **link} for (a, b), link in links.items()]


def _models(alive: Sequence[Announcement]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for digest, served in by_model(alive).items():
        shape = served[-1].shape
        format, spans = in_one_format(served)
        found.append(
            {
                "id": shape.name,
                "digest": digest,
                "n_blocks": shape.n_blocks,
                "format": format,
                "formats": sorted({one.format for one in served}),
                "coverage": coverage(spans, shape.n_blocks),
                "missing": [str(span) for span in gaps(spans, shape.n_blocks)],
            }
        )
    return found
