"""The session's rules, for a hop and for a client, as plain state: no I/O, no clock, no tensors.

A hop's cache has a length. A step says where it begins:

=====================  =====================================================
``position``           what the hop does
=====================  =====================================================
equal to the length    run it
below the length       roll the cache back to ``position``, then run it
above the length       refuse with ``PositionGap``: something was lost
=====================  =====================================================

All of a session's rows come in one codec: a receipt names one. So a hop that recodes a step is at odds with
the next one at once, and not when receipts are asked for.

Steps that only fill caches come to who has just been put in a lost hop's place, before all others: who could
send one later would change what a hop was given, and nobody behind it would notice.

So a step may be sent again, several may be in flight, and a client goes back by sending from an earlier
position. Results carry the step's number: what answers a step that was given up is dropped.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from shoal.errors import LocalProtocolError, PositionGap, RemoteProtocolError
from shoal.types import Codec, Numerics
from shoal.wire.fields import Grid
from shoal.wire.messages import Located, Open, Step, Stretch

MAX_STRETCH = 1024
"""Tokens of a step that see each other: they go in one forward, which takes memory for each."""


def stretches_fit(stretches: Sequence[Stretch], start: int, end: int) -> bool:
    """Whether stretches lie in ``[start, end)``, one behind the other; none is empty, and none too long."""
    bounds = [start, *(bound for stretch in stretches for bound in stretch), end]
    ordered = all(before <= after for before, after in pairwise(bounds))
    return ordered and all(first < last <= first + MAX_STRETCH for first, last in stretches)


def grids_fit(grids: Sequence[Grid], end: int, tokens: int) -> bool:
    """Whether pictures follow one another, begin before ``end``, and have room in a session of ``tokens``."""
    behind = [first + high * wide for first, high, wide in grids]
    ordered = all(before <= grid[0] for before, grid in zip([0, *behind], grids, strict=False))
    return ordered and all(grid[0] < end for grid in grids) and (not behind or behind[-1] <= tokens)


class HopSession:
    """What a hop knows of one session."""

    def __init__(self, opened: Open, width: int) -> None:
        self.opened = opened
        self.width = width
        self.length = 0
        """Tokens in the cache once every accepted step has run."""
        self.codec: Codec | None = None
        """In which the cache's first row came, and all others must; ``None`` before it."""
        self._stepped = False  # whether a step has come that goes round the ring

    def accept(self, step: Step) -> None:
        """Take a step in; the cache's length is counted at once, so that steps may queue.

        Raises:
            RemoteProtocolError: the step does not fit the session that was opened.
            PositionGap: the step begins beyond the cache.
        """
        rows, width = step.hidden.shape
        if width != self.width or rows != step.tokens:
            raise RemoteProtocolError(
                f"a step of {rows}×{width} for {step.tokens} tokens in a session of width {self.width}"
            )
        if step.position + step.tokens > self.opened.tokens:
            raise RemoteProtocolError(
                f"a step up to {step.position + step.tokens} in a session of {self.opened.tokens} tokens"
            )
        if step.sequence_length > self.opened.tokens:
            raise RemoteProtocolError(
                f"a step of a sequence of {step.sequence_length} tokens in a session of {self.opened.tokens}"
            )
        if not stretches_fit(step.mutual, step.position, step.position + step.tokens):
            raise RemoteProtocolError("a step whose tokens see others that are not in it, or too many")
        if not grids_fit(step.grids, step.position + step.tokens, self.opened.tokens):
            raise RemoteProtocolError("a step with pictures that are not before its end, or have no room")
        if (step.mutual or step.grids) and Numerics.parse(self.opened.numerics).exact:
            # A step says it and no receipt does: who computed it again would find other rows.
            raise RemoteProtocolError(
                "rows that see those behind them or have three positions, in a session that promises the "
                "same bits"
            )
        if step.hops_left is not None and self._stepped:
            raise RemoteProtocolError("a step that only fills caches, in a session that goes on here")
        if step.position > self.length:
            raise PositionGap(f"a step from position {step.position} with {self.length} tokens cached")
        codec = step.hidden.codec
        if step.position and codec != self.codec:
            raise RemoteProtocolError(f"a step in {codec} in a session whose rows came in {self.codec}")
        self.codec = codec
        self._stepped = self._stepped or step.hops_left is None
        self.length = step.position + step.tokens

    def take_up(self, length: int, codec: Codec) -> None:
        """The cache holds ``length`` tokens of an earlier session, whose rows came in ``codec``."""
        self.length, self.codec = length, codec

    def forget(self, length: int) -> None:
        """The step that was to run at ``length`` failed: what follows it no longer counts."""
        self.length = min(self.length, length)


@dataclass(frozen=True, slots=True)
class Issued:
    """A step on its way round the ring."""

    number: int
    position: int
    tokens: int
    wanted: int
    sequence_length: int = 0
    """As a step's."""
    alone: bool = True
    """Whether it finds no other step of the session at the hops, neither in flight nor given up."""
    mutual: tuple[Stretch, ...] = ()
    """As a step's."""
    grids: tuple[Grid, ...] = ()
    """As a step's."""

    @property
    def plain(self) -> bool:
        """Whether it is of one token, wanted back, of which nothing else is said."""
        told = self.sequence_length, self.mutual, self.grids
        return (self.tokens, self.wanted) == (1, 1) and not any(told)


class ClientSession:
    """What a client knows of one session: its length, and the steps in flight in the order sent."""

    def __init__(self, tokens: int, in_flight: int = 64) -> None:
        self.tokens = tokens
        """Tokens that every hop has reserved KV for."""
        self.length = 0
        """Tokens cached once every step in flight has run."""
        self._limit = in_flight
        self._next = 1
        self._gave_up = False  # whether hops may still be busy with what was given up last
        self._flying: OrderedDict[int, Issued] = OrderedDict()

    @property
    def in_flight(self) -> int:
        return len(self._flying)

    @property
    def oldest(self) -> Issued | None:
        """The step that has been in flight for longest."""
        return next(iter(self._flying.values()), None)

    @property
    def only(self) -> Issued | None:
        """The step in flight, if there is one and no other."""
        return self.oldest if len(self._flying) == 1 else None

    def issue(
        self,
        tokens: int,
        wanted: int,
        sequence_length: int = 0,
        mutual: tuple[Stretch, ...] = (),
        grids: tuple[Grid, ...] = (),
    ) -> Issued:
        """Number the next step.

        Args:
            sequence_length, mutual, grids: as a step's.

        Raises:
            LocalProtocolError: it does not fit the session, or too many are in flight.
        """
        if not 0 <= wanted <= tokens or tokens < 1:
            raise LocalProtocolError(f"a step of {tokens} tokens that wants {wanted} back")
        if self.length + tokens > self.tokens:
            raise LocalProtocolError(
                f"a step to position {self.length + tokens} in a session of {self.tokens} tokens"
            )
        if len(self._flying) >= self._limit:
            raise LocalProtocolError(f"{self._limit} steps are in flight already")
        alone = not self._flying and not self._gave_up
        step = Issued(self._next, self.length, tokens, wanted, sequence_length, alone, mutual, grids)
        self._gave_up = False
        self._next += 1
        self._flying[step.number] = step
        self.length += tokens
        return step

    def take_up(self, length: int) -> None:
        """The hops hold ``length`` tokens of an earlier session: the first step begins there."""
        self.length = length

    def flies(self, issued: Issued) -> bool:
        """Whether the step is still waited for: neither answered nor given up."""
        return issued.number in self._flying

    def roll_back(self, position: int) -> None:
        """Go back to ``position``. Steps in flight beyond it are given up: their results are dropped.

        Raises:
            LocalProtocolError: the session is not that long.
        """
        if not 0 <= position <= self.length:
            raise LocalProtocolError(f"no roll-back to {position} in a session of {self.length} tokens")
        self.length = position
        for number in [n for n, s in self._flying.items() if s.position + s.tokens > position]:
            del self._flying[number]
            self._gave_up = True

    def returned(self, step: Step) -> Issued | None:
        """Match a result with the step that it answers; ``None`` when that step was given up.

        Raises:
            RemoteProtocolError: a result that answers nothing we asked, or in another shape, or before those
                of steps that were sent earlier: each hop runs a session's steps in their order.
        """
        # Steps that only fill caches have the number 0, and no result.
        if step.number >= self._next or step.number == 0:
            raise RemoteProtocolError(f"a result for step {step.number}, which was never sent")
        oldest = self.oldest
        if oldest is not None and oldest.number < step.number and step.number in self._flying:
            raise RemoteProtocolError(f"a result for step {step.number} before that for {oldest.number}")
        issued = self._flying.pop(step.number, None)
        rows = step.hidden.rows
        if issued is not None and (rows, step.position) != (issued.wanted, issued.position):
            raise RemoteProtocolError(
                f"{rows} rows from position {step.position} for a step that wanted "
                f"{issued.wanted} from {issued.position}"
            )
        return issued

    def failed(self, number: int) -> bool:
        """A hop reports that a step came to nothing: it and all that was sent after it are given up.

        Returns:
            Whether the step was still in flight.
        """
        issued = self._flying.get(number)
        if issued is not None:
            # What was sent behind it builds on a cache that this step did not fill.
            self.roll_back(issued.position)
        return issued is not None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Where a step is stuck, by what each hop says of itself."""

    hops: tuple[int, ...]
    """One hop; or both ends of a link, of which one says that it sent and the other that nothing came."""
    at_work: bool = False
    """The hop says that it has the step, and has not sent it on yet."""


def where_stuck(found: Sequence[Located | None], number: int) -> Stuck:
    """Where step ``number`` is stuck.

    What a hop says it sent counts when the next one says that it came. Where each hop says that it did its
    part, the last one has not sent the result to us.

    Args:
        found: what each hop says; ``None`` of one that does not answer us.
    """
    for index, located in enumerate(found):
        if located is None:
            return Stuck((index,))
        if located.taken < number:
            # The hop before says that it sent, this one that nothing came: word against word.
            return Stuck((index - 1, index) if index else (0,))
        if located.sent < number:
            return Stuck((index,), at_work=True)
    return Stuck((len(found) - 1,))
