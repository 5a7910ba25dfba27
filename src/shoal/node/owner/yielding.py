"""Whether a node gives way to what else its machine is used for. Pure: readings and the time in, a state out.

Two thresholds and two waits keep it from going back and forth: what makes a node give way is more than what
keeps it there, and it comes back only after the machine has been left alone for a while. How much that was,
is judged over seconds: no idle machine is idle in every moment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

BUSY = 0.25
"""Share of the CPU, or of the node's GPU, that other programs take when the node gives way."""
QUIET = 0.12
"""The share below which they count as quiet again."""
BUSY_S = 4.0
"""How long the machine must have been busy: to open a window is no reason."""
QUIET_S = 20.0
"""How long it must have been quiet before the node comes back."""
SMOOTH_S = 4.0
"""What others take while a node gives way is smoothed over this: what runs for a moment does not make it
wait anew."""


@dataclass(frozen=True, slots=True)
class OtherUse:
    """What a machine is used for beside the node."""

    cpu: float
    """Share of all cores' time that other programs take, 0 to 1."""
    gpu: float | None = None
    """The same of the node's GPU; ``None`` where that is not known, or the node computes on the CPU."""
    on_battery: bool = False


@dataclass(frozen=True, slots=True)
class YieldState:
    """Whether a node gives way."""

    why: str = ""
    """What else the machine is used for; empty while the node has it to itself."""
    since: float = 0.0
    """When this began."""
    turned: float | None = None
    """Since when the readings say the opposite; ``None`` while they do not."""
    smoothed: OtherUse | None = field(default=None, compare=False)
    """What the machine has been used for lately; ``None`` before the first look."""
    looked: float = field(default=0.0, compare=False)
    """When it was looked at last."""

    @property
    def yielding(self) -> bool:
        return bool(self.why)


def decide(state: YieldState, use: OtherUse, now: float) -> YieldState:
    """The state after a look at the machine.

    Args:
        now: seconds, by any clock that only runs forwards.
    """
    smoothed = use
    if state.yielding and state.smoothed is not None:
        smoothed = _blend(state.smoothed, use, 1.0 - math.exp((state.looked - now) / SMOOTH_S))
    state = replace(state, smoothed=smoothed, looked=now)
    why = _cause(smoothed, QUIET if state.yielding else BUSY)
    if bool(why) == state.yielding:
        return replace(state, why=why, turned=None)
    turned = now if state.turned is None else state.turned
    if now - turned < (BUSY_S if why else QUIET_S):
        return replace(state, turned=turned)
    return YieldState(why, now, smoothed=smoothed, looked=now)


def _blend(before: OtherUse, use: OtherUse, weight: float) -> OtherUse:
    """``use`` by its weight and the rest of what was before; a battery is what it is now."""
    gpu = None if use.gpu is None else (1 - weight) * (before.gpu or 0.0) + weight * use.gpu
    return replace(use, cpu=(1 - weight) * before.cpu + weight * use.cpu, gpu=gpu)


def _cause(use: OtherUse, least: float) -> str:
    """What counts as use of at least ``least``; empty where nothing does."""
    if use.on_battery:
        return "it runs on battery"
    if use.cpu >= least:
        return f"other programs take {use.cpu:.0%} of the CPU"
    if use.gpu is not None and use.gpu >= least:
        return f"other programs take {use.gpu:.0%} of the GPU"
    return ""
