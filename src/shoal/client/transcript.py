"""What a session has told its hops, and what they must be told again. Pure: no I/O, no tensors.

The tokens of a session are in three parts::

    0 ........... held ........... length ........... length + len(ahead)
      the hops have     owed: to be        sent ahead: on their way, and
      their KV          sent again         no part of the session yet

``held`` is ``length`` but while a session is replayed. What was sent ahead becomes part of the session when
the caller appends the same tokens; all that is beyond a position may be taken back (:meth:`Transcript.cut`).
The token that was chosen last is sent ahead, and behind it what is guessed: of that the first few are
confirmed.

Tokens are kept in the pieces in which they were sent: sent again in the same pieces they give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from shoal.errors import LocalProtocolError
from shoal.executor.schedule import MERGED_ROWS
from shoal.models.build.rope_scaling import RopeScaling

TAKEN_UP_TOKENS = 512
"""Tokens of a piece of what an earlier session has left, where it must be sent again: as many as a step of a
prompt has at the most (``prefill.MOST``)."""


class Piece(NamedTuple):
    """Tokens that go through the hops in one step."""

    token_ids: list[int]
    sequence_length: int = 0
    """Tokens of the sequence that they are a piece of, where the model's rotary frequencies go by it."""


class Transcript:
    """The tokens of one session.

    Args:
        scaling: how the model's rotary frequencies follow from a sequence's length.
        given: how many tokens only stand for what an encoder gave: they are the first, and one piece.
    """

    def __init__(self, scaling: RopeScaling, given: int = 0) -> None:
        self._scaling = scaling
        self._given = given
        self._pieces: list[Piece] = []
        self._ahead: list[int] = []
        self.token_ids: list[int] = []
        """The tokens of the session, in order; not those that were sent ahead."""
        self.held = 0
        """How many of them the hops hold."""

    @property
    def length(self) -> int:
        """Tokens of the session."""
        return len(self.token_ids)

    @property
    def ahead(self) -> tuple[int, ...]:
        """Tokens on their way that nobody has appended yet."""
        return tuple(self._ahead)

    @property
    def held_pieces(self) -> list[Piece]:
        """What the hops hold, as it was sent."""
        return _before(self._pieces, self.held)

    @property
    def owed(self) -> list[Piece]:
        """What the hops must be sent again before anything new."""
        return self._pieces[len(self.held_pieces) :]

    def divide(
        self,
        token_ids: Sequence[int],
        size: int,
        sequence_length: int,
        uncut: Callable[[int, int], int] = lambda _, end: end,
    ) -> list[Piece]:
        """The pieces, of up to ``size`` tokens, in which ``token_ids`` are to be sent.

        Args:
            sequence_length: tokens of the text that they are a part of.
            uncut: given the positions from which and to which a piece would go, to which it goes: those are
                not cut that see each other.
        """
        told = sequence_length if self._scaling else 0
        given = 0 if self.length else self._given
        found = [Piece(list(token_ids[:given]), told)] if given else []
        place = given
        while place < len(token_ids):
            begin = self.length + place
            end = max(uncut(begin, begin + size), begin + 1) - self.length
            found.append(Piece(list(token_ids[place:end]), told))
            place = end
        return found

    def take_up(self, token_ids: Sequence[int]) -> None:
        """The hops hold these tokens of an earlier session, in pieces that nobody knows any more."""
        whole = list(token_ids)
        self._pieces = [
            Piece(whole[at : at + TAKEN_UP_TOKENS]) for at in range(0, len(whole), TAKEN_UP_TOKENS)
        ]
        self.token_ids += token_ids
        self.held = self.length

    def sent(self, piece: Piece) -> None:
        """A piece has been sent: the first that is owed, or, where none is, one that the session grows by."""
        if self.held < self.length:
            self.held += len(piece.token_ids)
            return
        self._pieces.append(piece)
        self.token_ids += piece.token_ids
        self.held = self.length

    def sent_ahead(self, token_ids: Sequence[int]) -> None:
        """Tokens have been sent that will most likely be appended next."""
        self._ahead += token_ids

    def confirm(self, piece: Piece) -> bool:
        """Whether a piece was sent ahead, and is on its way already; then it is part of the session now."""
        count = len(piece.token_ids)
        if self.held < self.length or not count or self._ahead[:count] != piece.token_ids:
            return False
        del self._ahead[:count]
        self.sent(piece)
        return True

    def cut(self, position: int) -> None:
        """Forget every token from ``position`` on, and all that was sent ahead.

        Raises:
            LocalProtocolError: the session is not that long, or that is amid what an encoder gave.
        """
        if 0 < position < self._given:
            raise LocalProtocolError(f"no roll-back to {position} of {self._given} rows of an encoder")
        if not 0 <= position <= self.length:
            raise LocalProtocolError(f"no roll-back to {position} in a session of {self.length} tokens")
        del self.token_ids[position:]
        self._pieces = _before(self._pieces, position)
        self._ahead = []
        self.held = min(self.held, position)

    def lose(self) -> None:
        """The hops hold nothing any more: all is owed, and what was sent ahead is lost."""
        self._ahead = []
        self.held = 0

    def join_singles(self) -> None:
        """Put what was sent token by token into pieces of up to ``MERGED_ROWS``."""
        self._pieces = join_singles(self._pieces)

    def outdated(self, length: int) -> bool:
        """Whether the keys that the hops hold are not those with which it goes on to ``length`` tokens.

        Keys with other frequencies stay where the model keeps them and the sequence has only grown; not where
        it was rolled back into what was run at once, which was longer than it is now.
        """
        if not self._scaling:
            return False
        now = self._scaling.frequencies(length)
        return any(
            self._scaling.frequencies(piece.sequence_length) != now
            for piece in self._pieces
            if self._scaling.recomputed or piece.sequence_length > self.length
        )

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many tokens of ``prompt`` need not be computed again; its last one always is.

        None where the whole prompt, run at once, would have keys with other frequencies.
        """
        now, shared = self._scaling.frequencies(len(prompt)), 0
        for piece in self._pieces:
            same = _same(piece.token_ids, prompt, shared, len(prompt) - 1)
            if same and self._scaling.frequencies(piece.sequence_length) != now:
                return 0
            shared += same
            if same < len(piece.token_ids):
                break
        return shared


def join_singles(pieces: Sequence[Piece]) -> list[Piece]:
    """The same tokens, with runs of single ones in pieces of up to ``MERGED_ROWS``."""
    found: list[Piece] = []
    running = False  # whether the last piece is a run of single tokens
    for piece in pieces:
        single = len(piece.token_ids) == 1 and not piece.sequence_length
        if running and single and len(found[-1].token_ids) < MERGED_ROWS:
            found[-1].token_ids.append(piece.token_ids[0])
        else:
            found.append(Piece(list(piece.token_ids), piece.sequence_length))
        running = single
    return found


def _before(pieces: Sequence[Piece], position: int) -> list[Piece]:
    """The pieces up to ``position``; the last one may be cut."""
    found: list[Piece] = []
    left = position
    for piece in pieces:
        if left <= 0:
            break
        found.append(
            piece if len(piece.token_ids) <= left else piece._replace(token_ids=piece.token_ids[:left])
        )
        left -= len(piece.token_ids)
    return found


def _same(token_ids: Sequence[int], prompt: Sequence[int], start: int, end: int) -> int:
    limit = max(min(len(token_ids), end - start), 0)
    return next((i for i in range(limit) if token_ids[i] != prompt[start + i]), limit)
