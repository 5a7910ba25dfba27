"""What goes into the next forward, and whether it waits for more. Pure: the caller brings the time.

A long prefill goes in slices beside the decode steps (Agrawal et al., "Sarathi-Serve", 2024), as large as the
times of forwards on this machine allow.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from shoal.types import Exactness

MAX_ROWS = 512
"""Rows of one forward: what bounds its working memory."""
MERGED_ROWS = 8
"""A step of so many rows runs whole, beside decode steps: some tokens of speculation, single rows that are
sent again as one, or a last piece. With more, kernels with float weights add up in another order, and a row's
bits would depend on its company."""
ALONE_ROWS = 16
"""Rows of a prefill's slice while others decode but have nothing ready: how long they may have to wait."""
FEW_ROWS = 4
"""Rows up to which a forward is bound by memory, on most machines."""
MANY_ROWS = 32
"""Rows from which a forward is bound by arithmetic, for certain."""
STRETCH = 1.8
"""How much longer a prefill may make the forwards of those who decode: their tokens come so much later."""
LEAST_ROWS = 4
"""Rows by which a prefill advances in every forward, however many decode: it does not starve either."""
QUIET_S = 5.0
"""For so long after its last step a session that decodes is thought of when a prefill is sliced."""
LATE_S = 0.05
"""The longest that a forward waits for sessions that are about to be ready."""


class Unfinished(Protocol):
    """A step some rows of which have not been through."""

    @property
    def left(self) -> int:
        """How many."""
        ...

    def uncut(self, rows: int) -> int:
        """So many of them, and those more without which rows would be cut from others that they see."""
        ...


_UnfinishedT = TypeVar("_UnfinishedT", bound=Unfinished)


@dataclass(slots=True)
class ForwardTimes:
    """How long forwards take, smoothed: the roofline of this span on this machine. 0 before the first."""

    fixed: float = 0.0
    """Seconds of a forward of a few rows: the weights are read."""
    per_row: float = 0.0
    """Seconds for each row of a forward of many: the arithmetic is done."""

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a forward of ``rows`` rows.

        Between few and many it is bound by what the ridge says, as far as that is known. Before, it says
        no more than that one of fewer rows takes no longer.
        """
        known = self.fixed and self.per_row
        between = FEW_ROWS < rows < MANY_ROWS
        if between and not known and self.fixed and seconds >= self.fixed:
            return
        if rows <= FEW_ROWS or (between and (not known or rows <= self.ridge)):
            self.fixed = _smooth(self.fixed, seconds)
        else:
            self.per_row = _smooth(self.per_row, seconds / rows)

    @property
    def ridge(self) -> float:
        """Rows up to which a forward takes no longer than with one."""
        return self.fixed / self.per_row if self.per_row else 0.0


@dataclass(slots=True)
class Rhythm:
    """When a session that decodes last left, and for how long it is usually away. Seconds."""

    left: float
    away: float = 0.0

    def due(self, now: float, until: float) -> bool:
        """Whether it is expected back by ``until``, and not so late that something must have happened."""
        return bool(self.away) and self.left + self.away <= until and now < self.left + 2 * self.away + 0.002


class Rhythms:
    """The rhythms of all sessions that decode, but those whose next step is here already (``here``)."""

    def __init__(self) -> None:
        self._rhythms: dict[Hashable, Rhythm] = {}

    def came(self, session: Hashable, now: float) -> None:
        """A step has come."""
        rhythm = self._rhythms.get(session)
        if rhythm is not None:
            rhythm.away = _smooth(rhythm.away, now - rhythm.left)

    def left(self, session: Hashable, rows: int, now: float) -> None:
        """A session's last step of ``rows`` rows is done; a prefill is no part of a rhythm."""
        if rows <= MERGED_ROWS:
            self._rhythms.setdefault(session, Rhythm(0.0)).left = now

    def of(self, session: Hashable) -> Rhythm:
        """A session's rhythm; one that is never due where none is known."""
        return self._rhythms.get(session) or Rhythm(0.0)

    def forget(self, session: Hashable) -> None:
        """The session is over."""
        self._rhythms.pop(session, None)

    def any_due(self, now: float, until: float, here: Container[Hashable]) -> bool:
        """Whether a session is expected back by ``until``."""
        return any(r.due(now, until) for session, r in self._rhythms.items() if session not in here)

    def any_decodes(self, now: float, here: Container[Hashable]) -> bool:
        """Whether a session has left within ``QUIET_S``, and may well be back."""
        return any(now - r.left < QUIET_S for session, r in self._rhythms.items() if session not in here)


def _smooth(old: float, new: float) -> float:
    return new if not old else 0.8 * old + 0.2 * new


def slice_rows(times: ForwardTimes, decoding: int, others: bool) -> int:
    """Rows of a prefill that go into one forward.

    Beside ``decoding`` decode steps, so many that the forward takes ``STRETCH`` times as long as with the
    decode steps alone. When others decode but are elsewhere just now, a bounded slice; when there is nobody
    else, all that a forward holds.
    """
    if not decoding:
        return ALONE_ROWS if others else MAX_ROWS
    rows = int(STRETCH * max(times.ridge, decoding)) - decoding
    return max(LEAST_ROWS, min(ALONE_ROWS, rows))


def merges_rows(bits: Exactness) -> bool:
    """Whether up to ``MERGED_ROWS`` rows of a step have the bits that each has in a step of its own."""
    return bits in ("rows", "batch")


def choose_batch(
    ready: Sequence[_UnfinishedT], times: ForwardTimes, others: bool, *, sliced: bool, bits: Exactness
) -> list[tuple[_UnfinishedT, int]]:
    """What goes into the next forward: jobs, each with how many of its rows. Unless ``sliced``, all of them.

    Every decode step that is ready, and a slice of one prefill. ``ready`` is in the order in which sessions
    were last served, so of several prefills the one that has waited longest has its turn.

    Args:
        bits: on what those of a row depend. Where that is how many run together, steps of several rows run
            beside so few that all have the bits of single ones: else what was guessed ahead could change
            what comes out.
    """
    chosen: list[tuple[_UnfinishedT, int]] = []
    several = any(1 < job.left <= MERGED_ROWS for job in ready)
    most = MERGED_ROWS if bits == "batch" and several else MAX_ROWS
    decoding = 0
    for job in ready:
        if job.left <= MERGED_ROWS and decoding + job.left <= most:
            chosen.append((job, job.left))
            decoding += job.left
    room = MAX_ROWS - decoding
    prefill = next((job for job in ready if job.left > MERGED_ROWS), None)
    if prefill is not None and room:
        rows = min(slice_rows(times, len(chosen), others), room) if sliced else prefill.left
        chosen.append((prefill, min(prefill.left, prefill.uncut(rows))))
    return chosen
