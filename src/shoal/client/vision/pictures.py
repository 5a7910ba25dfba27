"""Pictures of one session: where each stands among its tokens, and the rows that it has there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.executor.arrays import Floats
from shoal.wire.fields import Grid
from shoal.wire.messages import MAX_STRETCHES, Stretch


@dataclass(frozen=True, slots=True)
class PlacedPicture:
    """A picture in the place of some tokens of a prompt."""

    position: int
    """Of its first row."""
    rows: int
    digest: bytes
    """Of its pixels: what tells it from another in the same place."""
    mutual: bool
    """Whether its rows see each other, and not only those before."""
    grid: tuple[int, int] | None = None
    """How many rows it is high and wide, where they turn by that."""

    @property
    def loose(self) -> bool:
        """Whether steps say of its rows what no receipt does, so that no bits can be promised."""
        return self.mutual or self.grid is not None

    @property
    def end(self) -> int:
        """The position behind it."""
        return self.position + self.rows


@dataclass(frozen=True, slots=True)
class SeenPicture:
    """The same, looked at."""

    placed: PlacedPicture
    rows: Floats
    """What the first block receives in its place, ``[n, width]``."""


class SessionPictures:
    """Those of one session. Replaced as a whole, so that the thread that computes may read them meanwhile."""

    def __init__(self) -> None:
        self._seen: tuple[SeenPicture, ...] = ()

    @property
    def loose(self) -> bool:
        """Whether steps say of rows of some what no receipt does."""
        return any(seen.placed.loose for seen in self._seen)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._seen)

    def show(self, seen: Sequence[SeenPicture]) -> None:
        """From now on these stand among the session's tokens."""
        self._seen = tuple(seen)

    def same_until(self, placed: Sequence[PlacedPicture]) -> int | None:
        """The first position at which other pictures than these stand, or stood; ``None``: nowhere."""
        ours, others = {seen.placed for seen in self._seen}, set(placed)
        return min((picture.position for picture in ours ^ others), default=None)

    def put(self, rows: Floats, position: int) -> Floats:
        """Embeddings of tokens ``[position, position + n)``, with the rows of pictures that stand there."""
        end = position + len(rows)
        there = [s for s in self._seen if s.placed.position < end and s.placed.end > position]
        if not there:
            return rows
        made = rows.copy()
        for seen in there:
            first, last = max(seen.placed.position, position), min(seen.placed.end, end)
            made[first - position : last - position] = seen.rows[
                first - seen.placed.position : last - seen.placed.position
            ]
        return made

    def stretches(self, start: int, end: int) -> tuple[Stretch, ...]:
        """The positions in ``[start, end)`` of pictures whose rows see each other; none is cut."""
        return tuple(
            (seen.placed.position, seen.placed.end)
            for seen in self._seen
            if seen.placed.mutual and start <= seen.placed.position and seen.placed.end <= end
        )

    def grids(self, end: int) -> tuple[Grid, ...]:
        """The pictures that begin before position ``end``, where rows turn by where they are in one."""
        placed = sorted((seen.placed for seen in self._seen), key=lambda one: one.position)
        return tuple((one.position, *one.grid) for one in placed if one.grid and one.position < end)

    def uncut(self, start: int, end: int) -> int:
        """``end``, or where a piece from ``start`` ends that cuts no picture whose rows see each other.

        A piece holds at most ``MAX_STRETCHES`` of them.
        """
        inside = [s.placed for s in self._seen if s.placed.mutual and s.placed.position >= start]
        if len(inside) > MAX_STRETCHES:
            end = min(end, inside[MAX_STRETCHES].position)
        return next((p.end for p in inside if p.position < end < p.end), end)
