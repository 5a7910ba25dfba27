"""What guesses tokens before they are known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

INDEXED = 16384
"""Tokens that are looked through, the newest: a look takes 10 µs for each 10,000 of them."""
SHORTEST = 2
"""Tokens that must have occurred in this order. One alone is followed by anything."""
LONGEST = 8
"""Longer matches are no better."""
LOST = 4
"""Tokens after which a place that was followed is given up, where nothing matches any more."""
COMPARED = 16
"""Of the places where the last tokens occurred, how many are compared; the newest."""


class Guess(NamedTuple):
    """A token that may come next."""

    token: int
    source: str
    """What it was guessed by: guesses of one source are about equally often right."""
    draft_s: float = 0.0
    """Seconds that a guess of its source takes; 0 where it is nearly free."""


class Drafter(Protocol):
    """Guesses what follows the tokens that it was told of. For one answer."""

    def learn(self, token_ids: Sequence[int]) -> None:
        """These follow, for certain."""
        ...

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        """Up to ``count`` tokens that may follow, after ``ahead``, which were guessed before."""
        ...


class SlowDrafter(Drafter, Protocol):
    """One whose guesses take time: it is used where they are worth it."""

    source: str
    draft_s: float
    """What a guess takes, or may take as long as none was made."""
    why_off: str
    """Why it cannot guess; empty where it can."""

    @property
    def ready(self) -> bool:
        """Whether it can guess now."""
        ...

    def prepare(self) -> None:
        """Get ready, and do not wait for it. To be called as often as one likes."""
        ...

    def close(self) -> None:
        """Give back what it holds. Closing twice is no error."""
        ...


class NgramDrafter:
    """Looks for the last tokens in the prompt and the answer, and guesses what followed them there.

    "Prompt lookup decoding" (Saxena 2023): free, and right where a text repeats itself or quotes its prompt,
    as code, extracts and corrections do. Where a word was changed, and no longer stands anywhere before what
    follows it, it goes on from the place that it followed.
    """

    def __init__(self) -> None:
        self._tokens = np.empty(1024, np.int64)
        self._count = 0
        self._place = 0  # where what follows is guessed to stand; 0 if nowhere
        self._lost = 0  # tokens since the last that stood there

    def learn(self, token_ids: Sequence[int]) -> None:
        """As :meth:`Drafter.learn`."""
        kept = token_ids[-INDEXED:]
        if self._count + len(kept) > len(self._tokens):
            self._make_room(len(kept))
        self._tokens[self._count : self._count + len(kept)] = kept
        if self._place:
            for token in kept:
                self._lost = 0 if self._tokens[self._place] == token else self._lost + 1
                self._place += 1
        self._count += len(kept)

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        """As :meth:`Drafter.guess`."""
        if count < 1:
            return []
        if self._count + len(ahead) > len(self._tokens):
            self._make_room(len(ahead))
        known = self._count + len(ahead)
        text = self._tokens[:known]
        text[self._count :] = ahead
        start, matched = longest_match(text)
        if matched:
            # For the next time that nothing matches: where the last certain token would have stood.
            self._place, self._lost = max(0, start - len(ahead)), 0
        elif self._place and self._lost < LOST:
            start = self._place + len(ahead)
        else:
            return []
        # Beyond the end it goes on with what it has just guessed: a text that repeats itself goes on so.
        period = known - start
        name = "ngram" if matched else "resumed"
        return [
            Guess(int(text[start + index % period]), f"{name}-{min(matched + index, LONGEST)}")
            for index in range(count)
        ]

    def _make_room(self, more: int) -> None:
        kept = self._tokens[max(0, self._count - INDEXED) : self._count]
        self._place = max(0, self._place - (self._count - len(kept)))
        self._tokens = np.concatenate([kept, np.empty(len(kept) + more + 1024, np.int64)])
        self._count = len(kept)


def longest_match(text: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[int, int]:
    """Where what follows the last tokens of ``text`` stands in it, and how many of them occurred before it.

    The longest match counts, of several the newest. ``(0, 0)`` where there is none.
    """
    end = len(text)
    if end <= SHORTEST:
        return 0, 0
    found = np.flatnonzero((text[: end - 2] == text[end - 2]) & (text[1 : end - 1] == text[end - 1]))
    best = (0, 0)
    for place in found[: -COMPARED - 1 : -1].tolist():
        follows = place + SHORTEST
        matched = SHORTEST
        while matched < min(LONGEST, follows) and text[follows - matched - 1] == text[end - matched - 1]:
            matched += 1
        if matched > best[1]:
            best = (follows, matched)
        if matched == LONGEST:
            break
    return best
