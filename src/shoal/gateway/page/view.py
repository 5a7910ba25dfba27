"""The swarm as the page draws it. Pure: made from announcements, connections and round trips.

Anybody can announce anything, so what is shown is bounded: some peers, in the order of their standing, some
models, and of each a strip of some length. How many there are in all is said.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from shoal.net.network import PeerConnection
from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.coverage import in_one_format, in_order, most_relevant, runs
from shoal.swarm.directory import Directory
from shoal.types import ModelShape, PeerId, gaps

PEERS_SHOWN = 384
MODELS_SHOWN = 16
RUNS_SHOWN = 256
"""Runs of blocks with as many peers, of one model."""
GAPS_SHOWN = 32


def swarm_view(
    swarm: str,
    ourselves: PeerId,
    directory: Directory,
    connections: Sequence[PeerConnection],
    rtt_s: Mapping[PeerId, float | None],
    routes: Iterable[Sequence[Mapping[str, Any]]],
    *,
    now: float,
    wall: float,
) -> dict[str, Any]:
    """Peers, the links between them that are known here, and each model's coverage.

    Args:
        routes: those of recent requests: hop after hop sends to the next.
        now: by the clock of the directory.
        wall: seconds since the epoch.
    """
    alive = directory.by_standing(now)
    paths = {connection.peer: connection.path for connection in connections}

    def shown(a: Announcement) -> dict[str, Any]:
        peer = PeerId(a.peer)
        left_s = directory.expires_in_s(peer, now)
        return _peer(a, peer == ourselves, paths.get(peer), rtt_s.get(peer), left_s)

    peers = [shown(a) for a in in_order(alive[:PEERS_SHOWN])]
    models = most_relevant(alive, directory.known, MODELS_SHOWN)
    return {
        "peer": ourselves,
        "swarm": swarm,
        "at": wall,
        "peers": peers,
        "peers_in_all": len(alive),
        "links": _links(ourselves, peers, routes),
        "models": [_model(shape, served) for shape, served in models],
        "models_in_all": len({a.served.digest for a in alive if a.served}),
    }


def _peer(a: Announcement, me: bool, path: str | None, rtt_s: float | None, left_s: float) -> dict[str, Any]:
    served = a.served
    assert served is not None  # others are not in a directory
    return {
        "peer": a.peer,
        "agent": a.agent,
        "path": path or "none",
        "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 3),
        "me": me,
        "expires_in_s": round(left_s, 1),
        "model": served.model,
        "digest": served.digest,
        "start": served.start,
        "end": served.end,
        "n_blocks": served.n_blocks,
        "format": served.format,
        "numerics": served.numerics or None,
        "device": served.device,
        "device_memory": served.device_memory,
        "share": served.share,
        "token_joules": served.token_joules or None,
        "tokens": served.tokens,
        "tokens_free": served.tokens_free,
        "sessions": served.sessions,
        "step_ms": round(served.step_ms, 3),
        "operator": served.operator.operator if served.operator else None,
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


def _model(shape: ModelShape, served: Sequence[Served]) -> dict[str, Any]:
    format, spans = in_one_format(served)
    return {
        "id": shape.name,
        "digest": shape.digest,
        "n_blocks": shape.n_blocks,
        "format": format,
        "formats": sorted({one.format for one in served}),
        "runs": [(s.start, s.end, count) for s, count in runs(spans, shape.n_blocks)[:RUNS_SHOWN]],
        "missing": [str(span) for span in gaps(spans, shape.n_blocks)[:GAPS_SHOWN]],
    }
