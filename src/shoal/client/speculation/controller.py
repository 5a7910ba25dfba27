"""How many tokens to guess ahead, and in how many steps at once. Pure: a function of what was measured.

A run is what lies between two wrong guesses. Its first result comes after a whole ring, each further window
one interval later: as fast as the slowest hop works, and as many windows are under way. With a chance ``a``
for each guess a run has ``1 / (1 - a)`` tokens, the corrected one among them.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOWS = (1, 2, 3, 5, 7)
"""Guesses in one step, beside the token that is certain."""
DEPTHS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Steps under way at once."""
MARGIN = 1.05
"""How much faster than without it must be expected to be."""
SUFFICIENT = 0.97
"""Of the best speed: less work that reaches it is preferred, for the sake of the others at the hops."""
LOOP_S = 0.0005
"""What a step costs beside, as it is not sent by the thread that chose its token."""
SUREST = 0.98
TICK_S = 1e-6
"""Hops tell whole microseconds: a step that is told to take none is taken to have taken one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known when it is decided. Seconds."""

    acceptance: float
    """How likely a guess is right, if those before it are."""
    ways_s: float
    """On all ways of the ring together."""
    step_s: float
    """Computing one row at all hops together."""
    slowest_s: float
    """The same at the slowest hop."""
    row_s: float
    """Computing one row more at all hops together."""
    waiting_s: float
    """Waiting for others at all hops together."""
    own_s: float
    """Head, choice and embedding on this machine."""
    draft_s: float
    """One guess."""
    rows: int
    """Most rows of a step."""

    @property
    def plain_s(self) -> float:
        """A token without guesses."""
        return self.ways_s + self.step_s + self.waiting_s + self.own_s


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """What to send ahead."""

    window: int
    """Guesses in a step; 0: none, and tokens come one by one."""
    depth: int = 1
    """Steps under way at once."""


OFF = WindowPlan(0)


def choose_plan(seen: Snapshot) -> WindowPlan:
    """The plan that gives most tokens a second; none where it would not be clearly faster than without."""
    plans = [
        (tokens_per_s(seen, plan), plan)
        for window in WINDOWS
        for plan in (WindowPlan(window, depth) for depth in DEPTHS)
        # A step of one row has no room for a guess beside the certain token: the guess is a step of its own.
        if window < seen.rows or (window == 1 and plan.depth > 1)
    ]
    best = max(speed for speed, _ in plans)
    if best * seen.plain_s < MARGIN:
        return OFF
    good = [plan for speed, plan in plans if speed >= SUFFICIENT * best]
    return min(good, key=lambda plan: (plan.window * plan.depth, plan.depth))


def tokens_per_s(seen: Snapshot, plan: WindowPlan) -> float:
    """What ``plan`` is expected to give."""
    right = min(seen.acceptance, SUREST)
    # Who waits for others now makes them wait with every row more.
    step_s = max(seen.step_s, TICK_S)
    crowd = 1 + seen.waiting_s / step_s
    beside = min(plan.window, seen.rows - 1)
    own = seen.own_s + LOOP_S + plan.window * seen.draft_s
    first = seen.ways_s + seen.step_s + seen.waiting_s + crowd * beside * seen.row_s + own
    if plan.depth == 1:
        return (1 - right ** (beside + 1)) / (1 - right) / first
    share = seen.slowest_s / step_s
    work = crowd * (seen.slowest_s + (plan.window - 1) * share * seen.row_s)
    interval = max(work, own, first / plan.depth)
    whole = right**plan.window
    # A wrong guess leaves a useless step at work, which the next one finds there.
    return 1 / (1 - right) / (first + work / 2 + interval * whole / (1 - whole))
