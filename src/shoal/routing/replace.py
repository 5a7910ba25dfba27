"""Whether a hop that has become slow should be replaced in the middle of a session. Pure.

What replacing gains is the time of the steps that are still to come. What it costs is the cache: the tokens
so far go through the new hops once more. It is done when it gains ``MARGIN`` times what it costs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from shoal.errors import Busy, NoCoverage
from shoal.routing.prices import HOP_S, Candidate
from shoal.routing.repair import Repair, choose_repair
from shoal.routing.route import Stage
from shoal.types import PeerId, Span

MARGIN = 1.5
REOPEN_S = 0.5
"""What a re-route takes beside filling the cache: to open sessions, and to tell the neighbours."""
PREFILL = 10.0
"""Tokens of a prefill that take as long as a decode step: 32 rows took the bf16 and int8 kernels 2.9 and 3.1
times as long as one."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a session has seen of one hop's decode steps."""

    step_s: float
    """Time at the hop, waiting and computing, of its last steps."""
    promised_s: float
    """The same when it was chosen."""


@dataclass(frozen=True, slots=True)
class ReplaceDecision:
    """Whether to replace a hop, and why."""

    repair: Repair | None
    """What takes its place; ``None`` to keep it."""
    why: str


def worth_replacing(
    candidates: Sequence[Candidate],
    route: Sequence[Stage],
    index: int,
    seen: StepTimes,
    tokens: int,
    *,
    cached: int,
    remaining: int,
    avoid: Collection[PeerId] = (),
) -> ReplaceDecision:
    """Whether the hop at ``index`` of a route should be replaced.

    Args:
        seen: the hop's steps.
        tokens: what the session reserves KV for.
        cached: tokens so far, which the new hops have to be given.
        remaining: tokens that are still to come, at the most.
        avoid: peers that are not to take its place.
    """
    peer = route[index].peer
    try:
        [repair] = choose_repair(candidates, route, {index}, tokens, avoid={*avoid, peer})
    except (NoCoverage, Busy) as error:
        return ReplaceDecision(None, error.message)
    step_s = _step_s(repair[2], {candidate.peer: candidate for candidate in candidates})
    if step_s is None:
        return ReplaceDecision(None, "of those who could take its place, not all have measured their steps")
    gain_s = (seen.step_s - step_s) * remaining
    cost_s = REOPEN_S + step_s * cached / PREFILL
    told = f"saves {gain_s:.1f} s of the steps to come, for {cost_s:.1f} s to fill the cache"
    if gain_s <= MARGIN * cost_s:
        return ReplaceDecision(None, f"to replace it {told}: too little")
    return ReplaceDecision(repair, f"to replace it {told}")


def promised_s(candidate: Candidate, span: Span) -> float:
    """Time of a decode step through ``span`` there, waiting and computing; 0 if it has not measured one."""
    if not candidate.step_s:
        return 0.0
    return candidate.wait_s + candidate.step_s * len(span) / len(candidate.span)


def _step_s(stages: Sequence[Stage], known: dict[PeerId, Candidate]) -> float | None:
    """What a step takes at the new stages, further hops included; ``None`` where one is not measured.

    Who is trusted little is expected to take longer than it says.
    """
    total = HOP_S * (len(stages) - 1)
    for stage in stages:
        step_s = promised_s(known[stage.peer], stage.span)
        if not step_s:
            return None
        total += step_s / known[stage.peer].trust
    return total
