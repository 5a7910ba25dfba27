"""Canaries: requests of nobody, which are made to be audited. What they say, and when they are due. Pure.

A hop that computes honestly for clients that it knows to audit, and lies to strangers, is not found by audits
of what it gave those clients. So a client is a stranger now and then: under an identity that is used for this
alone it asks what looks like any other request, and audits every hop of the answer.

What they say is nobody's: a text that the model itself wrote for an earlier canary, cut and put together
anew; before there is any, words of its vocabulary, as often as words are. No text of a user is sent again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

from shoal.trust.audit import AuditAccount, Chance

CANARY_COST = 3
"""Times the compute of a canary's answer that is set aside for it: for the answer, for each of its hops to be
computed again, and for whoever must confirm what that finds."""
LAST = 0.999999
"""Of an answer's windows: canaries are audited to the end."""
MEAN_PAUSE_S = 60.0
MOST_PAUSE_S = 600.0
KEPT_TEXTS = 16
KEPT_TOKENS = 1024
"""Of one text."""
PASSAGE = (16, 96)
"""Tokens of one passage that is taken out of a text."""


def canary_pause_s(chance: Chance) -> float:
    """How long until it is looked whether a canary is due: by chance, so that nothing comes before one."""
    return min(MOST_PAUSE_S, -MEAN_PAUSE_S * math.log(1 - chance()))


def is_due(account: AuditAccount, cost: int, budget: float, share: float) -> bool:
    """Whether a canary may be sent now.

    Args:
        cost: of its answer, in rows through blocks.
        budget: share of the compute of answers that audits may take.
        share: of the budget, what canaries may take.
    """
    return account.canaries + CANARY_COST * cost <= share * budget * account.earned


class CanaryTexts:
    """Of one model: what it has written for canaries.

    Args:
        words: the tokens that a text is begun with where there is none yet, those first that are used most.
    """

    def __init__(self, words: Sequence[int]) -> None:
        self._words = words
        self._kept = deque[tuple[int, ...]](maxlen=KEPT_TEXTS)

    def keep(self, token_ids: Sequence[int]) -> None:
        """Keep what the model has written, unless it is too short to be cut, or goes round in a circle."""
        if len(token_ids) >= PASSAGE[0] and 2 * len(set(token_ids)) >= len(token_ids):
            self._kept.append(tuple(token_ids[:KEPT_TOKENS]))

    def draw(self, tokens: int, chance: Chance) -> list[int]:
        """A text of so many tokens that was not sent before; empty where the model has no words."""
        found = list[int]()
        while len(found) < tokens and (self._kept or self._words):
            found += self._passage(chance) if self._kept else [self._word(chance)]
        return found[:tokens]

    def _passage(self, chance: Chance) -> tuple[int, ...]:
        text = self._kept[int(chance() * len(self._kept))]
        length = PASSAGE[0] + int(chance() * (PASSAGE[1] - PASSAGE[0] + 1))
        begin = int(chance() * max(1, len(text) - length + 1))
        return text[begin : begin + length]

    def _word(self, chance: Chance) -> int:
        # How often a word is used is about as one to its rank (Zipf): its logarithm is drawn evenly.
        rank = int((len(self._words) + 1) ** chance()) - 1
        return self._words[rank]
