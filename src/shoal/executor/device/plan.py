"""What a forward of many sessions' rows needs to know of them, as integers that go to the device at once.

Rows are put in an order in which sessions with as many rows, and about as many tokens, lie side by side: each
such group attends in one call. Pure: numpy alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from shoal.executor.pages import PAGE, pages_for
from shoal.executor.runner import SessionRows

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PageView:
    """The pages that some sequences look at, all as many."""

    table: Integers
    """Numbers of pages, ``[sequences, pages]``. Where a sequence has fewer, its own first page stands again,
    which lies beyond what it may see."""
    first: Integers
    """Position of the first token of each sequence's pages, ``[sequences]``."""


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Sequences that attend together."""

    start: int
    """Their first row."""
    sequences: int
    rows: int
    """Of each sequence."""
    views: dict[int, PageView]
    """By window."""


@dataclass(frozen=True, slots=True)
class ForwardPlan:
    """One forward."""

    order: list[int]
    """Which sequence of the batch comes when."""
    positions: Integers
    """Of every row, in that order."""
    ends: Integers
    """The position behind the last that each of them sees."""
    slots: Integers
    """Where each row's key and value go: page times 16, plus the place within it."""
    unused: Integers
    """Slots that hold nothing of the session that owns them, and may be looked at."""
    groups: list[RowGroup]
    rotary_positions: Integers
    """The positions that turn each row: its own, ``[n]``, or ``[n, 3]`` where some are among pictures."""


def plan_forward(batch: Sequence[SessionRows], windows: Sequence[int]) -> ForwardPlan:
    """Plan a forward of rows whose sessions have the pages for them.

    Args:
        windows: the distinct ones of the blocks; 0 sees all tokens.
    """
    order = sorted(range(len(batch)), key=lambda i: _kind(batch[i]))
    rows = [batch[i] for i in order]
    groups: list[RowGroup] = []
    start = 0
    for (n, _), alike in groupby(rows, key=_kind):
        members = list(alike)
        views = {window: _view(members, window) for window in windows}
        groups.append(RowGroup(start, len(members), n, views))
        start += n * len(members)
    positions = np.concatenate([np.arange(r.position, _end(r), dtype=np.int64) for r in rows])
    turning = positions
    if any(r.grids for r in rows):
        turning = np.concatenate([r.rotary_positions().astype(np.int64) for r in rows])
    return ForwardPlan(
        order,
        positions,
        np.concatenate([r.seen_ends().astype(np.int64) for r in rows]),
        np.concatenate([_slots(r, r.position, _end(r)) for r in rows]),
        np.concatenate([_unused(r) for r in rows]),
        groups,
        turning,
    )


def _end(rows: SessionRows) -> int:
    """Tokens that are cached after it."""
    return rows.position + len(rows.hidden)


def _kind(rows: SessionRows) -> tuple[int, int]:
    """Alike are those of which none has more than twice the pages of another."""
    return len(rows.hidden), pages_for(_end(rows)).bit_length()


def _slots(rows: SessionRows, start: int, end: int) -> Integers:
    at = np.arange(start, end, dtype=np.int64)
    return _pages(rows)[at // PAGE] * PAGE + at % PAGE


def _pages(rows: SessionRows) -> Integers:
    return np.asarray(rows.state.pages.numbers, np.int64)


def _unused(rows: SessionRows) -> Integers:
    """The rest of the last page, where it is new here or held what the session has gone back from.

    What another session has left there, even if no number, must not reach this one: nothing times it is no
    number either.
    """
    end, length = _end(rows), rows.state.length
    if rows.position == length and pages_for(end) == pages_for(length):
        return np.empty(0, np.int64)
    return _slots(rows, end, pages_for(end) * PAGE)


def _view(members: Sequence[SessionRows], window: int) -> PageView:
    first = [max(0, r.position + 1 - window) // PAGE if window else 0 for r in members]
    pages = [_pages(r)[at : pages_for(_end(r))] for r, at in zip(members, first, strict=True)]
    table = np.empty((len(members), max(map(len, pages))), np.int64)
    for row, numbers in zip(table, pages, strict=True):
        row[: len(numbers)] = numbers
        row[len(numbers) :] = numbers[0]
    return PageView(table, np.asarray(first, np.int64) * PAGE)
