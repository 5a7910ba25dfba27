"""What announcements offer to a route."""

from __future__ import annotations

from shoal.routing.prices import Candidate
from shoal.swarm.announcement import Served
from shoal.types import PeerId

LEAST_BLOCK_S = 20e-6
"""Nobody is believed to run a block in less: who says so wants to draw every session."""


def candidate(peer: PeerId, served: Served, rtt_s: float | None) -> Candidate:
    """What a peer says that it serves, as routing sees it.

    Args:
        rtt_s: the round trip to it, if we have measured one.
    """
    least = LEAST_BLOCK_S * len(served.span)
    return Candidate(
        peer,
        served.span,
        served.tokens_free,
        max(served.step_ms / 1e3, least) if served.step_ms else 0.0,
        rtt_s,
        wait_s=served.wait_ms / 1e3,
        sessions=served.sessions,
        tokens=served.tokens,
    )
