"""What a hop keeps of one session for its receipts, and which questions for them it answers.

Receipts are signed when the session's client asks, each window once for each question.

Who asks again with a nonce gets what was signed for it or nothing: whoever could have two versions signed
could pass an honest hop off as a liar. What was committed to is kept as it was then: nobody can change
between a commitment and the receipts what a hop has to show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.errors import NotAllowed
from shoal.trust.receipt import Work
from shoal.trust.rows import RowLog, row_hashes
from shoal.types import Codec
from shoal.wire.messages import SignedWindow

MAX_QUESTIONS = 64
"""Of one session; each costs a signature for every 32 tokens, some 60 µs."""


@dataclass(frozen=True, slots=True)
class CommittedWork:
    """What a hop had done when it committed to it."""

    tokens: int
    work: Work
    log: WorkLog


class Signing:
    """What was asked of one session, and the answer to the last question."""

    def __init__(self) -> None:
        self._nonces: set[bytes] = set()
        self._committed: set[bytes] = set()
        self._snapshot: CommittedWork | None = (
            None  # of the last commitment alone: each takes as much as the session
        )
        self._last = b""
        self._signed: Sequence[SignedWindow] | None = None

    def begin(self, nonce: bytes) -> bool:
        """Take a question in. Returns whether there is something to be signed for it.

        Raises:
            NotAllowed: it was asked before, and another one since, or is being answered; or too much was.
        """
        if nonce == self._last and self._signed is not None:
            return False
        if nonce in self._nonces:
            raise NotAllowed("receipts for this nonce were signed before", check="ask with a new nonce")
        self._count()
        self._nonces.add(nonce)
        self._last, self._signed = nonce, None
        return True

    def commit(self, nonce: bytes) -> None:
        """Take in that a commitment is wanted to what would be signed for a nonce.

        Raises:
            NotAllowed: for this nonce there was one already, or something was signed; or too much was asked.
        """
        if nonce in self._committed or nonce in self._nonces:
            raise NotAllowed("this nonce was asked with before", check="ask with a new nonce")
        self._count()
        self._committed.add(nonce)

    def keep(self, snapshot: CommittedWork) -> None:
        """What a commitment is to: that alone is signed for its nonce."""
        self._snapshot = snapshot

    def committed(self, nonce: bytes, tokens: int) -> CommittedWork | None:
        """What is to be signed for a nonce that there was a commitment for; ``None``: there was none.

        It is given once.

        Raises:
            NotAllowed: the commitment was to something else, is being made, or there was another since.
        """
        if nonce not in self._committed:
            return None
        found, self._snapshot = self._snapshot, None
        if found is None or found.work.nonce != nonce or found.tokens != tokens:
            raise NotAllowed(
                f"there is no commitment to receipts for {tokens} tokens and this nonce, or another since",
                check="commit and ask in turn, for as many tokens",
            )
        return found

    def _count(self) -> None:
        if len(self._nonces) + len(self._committed) >= MAX_QUESTIONS:
            raise NotAllowed(f"receipts of this session were asked for {MAX_QUESTIONS} times")

    def signed(self, nonce: bytes, windows: Sequence[SignedWindow]) -> None:
        """What was signed for a question."""
        if nonce == self._last:
            self._signed = windows

    def since(self, first: int, most: int) -> tuple[SignedWindow, ...]:
        """A part of the answer to the last question."""
        return tuple((self._signed or ())[first : first + most])


class WorkLog:
    """What a hop was given in a session and what it made of it. Only touched by the thread that computes."""

    def __init__(self) -> None:
        self.came, self.went = RowLog(), RowLog()
        self.codec: Codec = "float32"

    def note(
        self,
        position: int,
        codec: Codec,
        rows: int,
        width: int,
        payload: bytes,
        shown: int,
        out: bytes,
    ) -> None:
        """A step has been computed.

        Args:
            rows: that came in ``payload``, from ``position`` on.
            shown: the last of them, of which there is something in ``out``.
        """
        self.codec = codec
        self.came.note(position, rows, row_hashes(payload, codec, rows, width))
        self.went.note(position, rows, row_hashes(out, codec, shown, width) if shown else b"")

    def copy(self, tokens: int) -> WorkLog:
        """The first ``tokens`` positions.

        Raises:
            NotAllowed: there are fewer.
        """
        if tokens > len(self.came):
            raise NotAllowed(f"receipts for {tokens} tokens, of which {len(self.came)} have been computed")
        copied = WorkLog()
        copied.came, copied.went, copied.codec = self.came.copy(tokens), self.went.copy(tokens), self.codec
        return copied
