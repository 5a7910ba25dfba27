"""Whether guessing ahead has paid, by the time that tokens took. Pure: the caller brings the times."""

from __future__ import annotations

SMOOTH = 0.2
"""What a new time counts for."""
TRIAL = 8
"""Tokens after which what was expected is compared with what came."""
REST = 64
"""Tokens for which nothing is guessed where it did not pay; twice as many each time in a row."""
LONGEST_REST = 1024


class Gain:
    """Of one answer. Seconds for each token, from one token to the next."""

    def __init__(self) -> None:
        self._plain_s = 0.0
        self._tokens = 0
        self._took_s = 0.0
        self._saved: tuple[float, float] = (0.0, 0.0)  # seconds: without guesses, and as it was
        self._rest = 0
        self._next_rest = REST

    @property
    def resting(self) -> bool:
        """Whether nothing is to be guessed for now."""
        return self._rest > 0

    @property
    def ratio(self) -> float:
        """How much faster tokens came while guesses were sent."""
        plain_s, took_s = self._saved
        return plain_s / took_s if took_s else 1.0

    def note_plain(self, took_s: float) -> None:
        """A token came without guesses."""
        self._plain_s = took_s if not self._plain_s else (1 - SMOOTH) * self._plain_s + SMOOTH * took_s
        self._rest = max(0, self._rest - 1)

    def note_ahead(self, tokens: int, took_s: float) -> None:
        """So many tokens came of a step with guesses behind it."""
        self._saved = (self._saved[0] + tokens * self._plain_s, self._saved[1] + took_s)
        self._tokens += tokens
        self._took_s += took_s
        if self._tokens < TRIAL:
            return
        if self._tokens * self._plain_s < self._took_s:
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST)
        else:
            self._next_rest = REST
        self._tokens, self._took_s = 0, 0.0
