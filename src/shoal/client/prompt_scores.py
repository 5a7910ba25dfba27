"""How likely a prompt's own tokens were."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from shoal.client.scores import TokenScore, score
from shoal.client.session import Session
from shoal.client.timing import Timing, traced_answer
from shoal.executor.arrays import Floats

SCORED_AT_ONCE = 256
"""Prompt tokens whose logits are held together: 50 MB for a vocabulary of 50,000."""


async def score_prompt(session: Session, prompt: Sequence[int], top: int) -> list[TokenScore | None]:
    """The score of each token of ``prompt``; ``None`` for the first, before which there is nothing.

    The session must be empty, and holds the prompt afterwards.

    Raises:
        PromptTooLong, UsageError: before anything was sent.
        ShoalError: the session is lost or a step failed.
    """
    scores: list[TokenScore | None] = [None]
    virtual = session.ends.virtual
    with traced_answer(session, len(prompt), Timing(), "prompt_scores"):
        for start in range(0, len(prompt), SCORED_AT_ONCE):
            piece = prompt[start : start + SCORED_AT_ONCE]
            begins = () if start else virtual
            logits = await session.step((*begins, *piece), sequence_length=len(virtual) + len(prompt))
            following = prompt[start + 1 : start + 1 + len(piece)]
            scores += await trio.to_thread.run_sync(_scores, logits, following, top)
    return scores


def _scores(logits: Floats, following: Sequence[int], top: int) -> list[TokenScore]:
    return [score(row, token, top) for row, token in zip(logits, following, strict=False)]
