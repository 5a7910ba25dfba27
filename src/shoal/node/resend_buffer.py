"""What a hop has sent on, kept so that it can be sent again to whoever takes the next hop's place.

Kept as it was sent, byte for byte: a cache that is filled again from it holds the same bits as the one lost.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from shoal.executor.codecs import join_rows, split_rows
from shoal.executor.schedule import MERGED_ROWS
from shoal.types import Codec, SessionId
from shoal.wire.fields import Grid
from shoal.wire.messages import Step, Stretch
from shoal.wire.payload import hidden_states

RESEND_LIMIT = 256 << 20
"""Bytes that a node keeps over all its sessions. Beyond it the session with most is kept no longer, and its
client replays it instead: whoever keeps much has nobody else given up."""


GRID_BYTES = 160
"""Of one picture that a step names, as it lies in memory."""


@dataclass(frozen=True, slots=True)
class Entry:
    """The hidden states of ``tokens`` tokens from ``position`` on."""

    position: int
    tokens: int
    codec: Codec
    payload: bytes
    sequence_length: int = 0
    """As the step's."""
    mutual: tuple[Stretch, ...] = ()
    """As the step's."""
    grids: tuple[Grid, ...] = ()
    """As the step's."""
    cut: bool = False
    """Whether it is the beginning of what was sent at once: not to be sent again, as it gave other bits."""

    @property
    def end(self) -> int:
        return self.position + self.tokens

    @property
    def size(self) -> int:
        """Bytes in memory, nearly."""
        return len(self.payload) + GRID_BYTES * len(self.grids)

    def refill(self, session: SessionId, width: int, hops_left: int) -> Step:
        """The step that fills a cache with it; nothing comes back of it.

        Args:
            width: elements of a token's hidden states.
            hops_left: as a step's.
        """
        return Step(
            session,
            number=0,
            position=self.position,
            tokens=self.tokens,
            wanted=0,
            tensors=hidden_states(self.codec, self.tokens, width),
            hops_left=hops_left,
            sequence_length=self.sequence_length,
            mutual=self.mutual,
            grids=self.grids,
        )


class ResendBudget:
    """The room that all sessions of a node share, whatever threads they are on."""

    def __init__(self, limit: int = RESEND_LIMIT) -> None:
        self.limit = limit
        self.taken = 0
        self.lock = threading.Lock()
        self.keepers: set[ResendBuffer] = set()
        """Sessions that keep something."""


class ResendBuffer:
    """One session's part of a :class:`ResendBudget`: what was sent for positions 0 up to its length.

    Args:
        merge: whether up to ``MERGED_ROWS`` rows give the same bits in one step as in a step each. They are
            then kept by themselves, so that a session may go back into the middle of a step, and are sent
            again together.
    """

    def __init__(self, room: ResendBudget, *, merge: bool) -> None:
        self._room = room
        self._merge = merge
        self._size = 0  # bytes
        self._entries: list[Entry] = []
        self._whole = True  # nothing is missing from where it began on

    def add(self, step: Step, codec: Codec, payload: bytes) -> None:
        """Keep the result of ``step``, and forget what it overwrites."""
        with self._room.lock:
            while self._entries and self._entries[-1].end > step.position:
                entry = self._entries.pop()
                self._take(-entry.size)
                if entry.position < step.position:  # it went back into the middle of a piece
                    self._keep_beginning(entry, step.position - entry.position, step.hidden.width)
                    break
            # The session begins again, so nothing before this can be missing.
            if step.position == 0:
                self._whole = True
            made = self._divided(step, codec, payload) if self._whole else []
            size = sum(entry.size for entry in made)
            if made and self._find_room(size):
                self._take(size)
                self._entries += made

    def below(self, position: int) -> list[Entry] | None:
        """What was sent for the positions below ``position``; ``None`` when some of it is missing."""
        if position == 0:
            return []
        with self._room.lock:
            kept = [entry for entry in self._entries if entry.position < position] if self._whole else []
        # A session that goes on with kept KV never sent what is before that. And a piece that goes beyond is
        # not cut: in other pieces, the cache would hold other bits.
        if not kept or kept[0].position or kept[-1].end != position or any(entry.cut for entry in kept):
            return None
        return list(_merged(kept)) if self._merge else kept

    def rows(self, first: int, count: int, width: int) -> list[bytes] | None:
        """What was sent for ``count`` positions from ``first`` on, each row as if it had been sent alone.

        ``None`` when some of it is missing.
        """
        last = first + count
        with self._room.lock:
            within = [e for e in self._entries if e.end > first and e.position < last] if self._whole else []
        found: list[bytes] = []
        for entry in within:
            alone = split_rows(entry.payload, entry.codec, entry.tokens, width)
            found += alone[max(first - entry.position, 0) : last - entry.position]
        return found if len(found) == count else None

    def clear(self) -> None:
        """Give the room back; what comes after is not kept until the session begins again."""
        with self._room.lock:
            self._give_up()

    def _keep_beginning(self, entry: Entry, tokens: int, width: int) -> None:
        """Of a piece, keep what the session still holds: to be shown."""
        rows = split_rows(entry.payload, entry.codec, entry.tokens, width)[:tokens]
        payload = join_rows(rows, entry.codec, width)
        self._take(len(payload))
        self._entries.append(Entry(entry.position, tokens, entry.codec, payload, cut=True))

    def _divided(self, step: Step, codec: Codec, payload: bytes) -> list[Entry]:
        whole = step.sequence_length or step.mutual
        if not self._merge or whole or not 1 < step.tokens <= MERGED_ROWS:
            told = step.sequence_length, step.mutual, step.grids
            return [Entry(step.position, step.tokens, codec, payload, *told)]
        rows = split_rows(payload, codec, step.tokens, step.hidden.width)
        return [
            Entry(step.position + row, 1, codec, alone, grids=step.grids) for row, alone in enumerate(rows)
        ]

    def _find_room(self, size: int) -> bool:
        """Whether so many bytes more may be kept, if need be in the place of sessions with more."""
        while self._room.taken + size > self._room.limit:
            largest = max(self._room.keepers, key=lambda kept: kept._size, default=self)
            # To give up one that keeps no more than we do would only move the loss.
            if largest is self or largest._size <= self._size + size:
                self._give_up()
                return False
            largest._give_up()
        return True

    def _give_up(self) -> None:
        self._take(-self._size)
        self._entries.clear()
        self._whole = False

    def _take(self, size: int) -> None:
        self._size += size
        self._room.taken += size
        (self._room.keepers.add if self._size else self._room.keepers.discard)(self)


def _merged(entries: list[Entry]) -> Iterator[Entry]:
    """Runs of single rows as one entry each. int8's scales lie before all rows and cannot be joined."""
    run: list[Entry] = []
    for entry in entries:
        alone = not entry.sequence_length and not entry.mutual
        single = entry.tokens == 1 and entry.codec != "int8" and alone
        if run and (not single or len(run) == MERGED_ROWS):
            yield _joined(run)
            run = []
        if single:
            run.append(entry)
        else:
            yield entry
    if run:
        yield _joined(run)


def _joined(run: list[Entry]) -> Entry:
    payload = b"".join(entry.payload for entry in run)
    # Positions of rows do not depend on pictures behind them, which the last one's may have among them.
    return Entry(run[0].position, len(run), run[0].codec, payload, grids=run[-1].grids)
