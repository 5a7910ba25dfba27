"""Which tokens' scores are told with an answer's text: those whose own text is part of it.

The reader of an answer holds back what may be markup: what a token was is often known only some tokens later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from shoal.client.generate import Delta
from shoal.client.scores import TokenScore
from shoal.gateway.markup.events import AnswerEvent


class TextScores:
    """Keeps the scores of tokens until it is known whether they were text."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[int, TokenScore]] = deque()
        """With the place at which each token's text begins, in characters."""
        self._came = 0
        """Characters of the answer so far."""

    def take(self, delta: Delta, said: Sequence[AnswerEvent], undecided: int) -> list[TokenScore]:
        """The scores of what was said as text with a delta. Those of markup, thoughts and calls are dropped.

        A token that is both, such as one that ends a thought and begins the text, is the text's.

        Args:
            said: what the answer's reader gave for the delta.
            undecided: characters that the reader holds back.
        """
        if delta.score is not None:
            self._waiting.append((self._came, delta.score))
        self._came += len(delta.text)
        # A token without text of its own, as a part of a character, goes with the next one that has some.
        decided: list[TokenScore] = []
        while self._waiting and self._waiting[0][0] < self._came - undecided:
            decided.append(self._waiting.popleft()[1])
        texts = [isinstance(one, str) for one in said]
        if not any(texts):
            return []
        return decided if texts[0] else [score for score in decided if score is delta.score]

    def rest(self) -> list[TokenScore]:
        """The scores of the tokens at the answer's end that have no text, as an end token has none."""
        rest = [score for _, score in self._waiting]
        self._waiting.clear()
        return rest
