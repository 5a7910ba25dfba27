"""Random numbers that nobody can choose: a hash of all that was said before (Fiat and Shamir, 1986)."""

from __future__ import annotations

from blake3 import blake3

from shoal.trust.proofs.field import PRIME

CONTEXT = b"shoal proof 1\n"
_DRAW = b"draw"


class Challenges:
    """What prover and verifier both make of what the one says and the other reads."""

    def __init__(self, statement: bytes) -> None:
        self._state = blake3(CONTEXT + statement).digest()

    def said(self, data: bytes | memoryview) -> None:
        """Take in what was said: of another length or in another place it leads elsewhere."""
        self._state = blake3(self._state).update(len(data).to_bytes(8, "little")).update(data).digest()

    def draw(self) -> int:
        """A number of the field."""
        self._state = blake3(self._state + _DRAW).digest()
        return int.from_bytes(self._state[:16], "little") % PRIME

    def point(self, count: int) -> list[int]:
        """Several."""
        return [self.draw() for _ in range(count)]
