"""How likely tokens were: log probabilities from logits, as they left the model.

Temperature, penalties and grammars choose among tokens; they do not change what is reported here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import trio

from shoal.executor.arrays import Floats

if TYPE_CHECKING:
    from shoal.client.session import Session

SCORED_AT_ONCE = 256
"""Prompt tokens whose logits are held together: 50 MB for a vocabulary of 50,000."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token, and the likeliest at its place."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """Token ids with their log probabilities, the likeliest first."""


def log_softmax(logits: Floats) -> Floats:
    """Log probabilities, by logits ``[..., vocab]``."""
    below = logits - logits.max(-1, keepdims=True)
    return below - np.log(np.exp(below).sum(-1, keepdims=True, dtype=np.float64)).astype(np.float32)


def score(logits: Floats, token: int, top: int) -> TokenScore:
    """The score of ``token`` by the logits ``[vocab]`` before it, beside the ``top`` likeliest."""
    logprobs = log_softmax(logits)
    top = min(top, len(logprobs))
    best = np.argpartition(logprobs, -top)[-top:] if top else np.empty(0, np.intp)
    best = best[np.argsort(-logprobs[best], kind="stable")]
    pairs = zip(best.tolist(), logprobs[best].tolist(), strict=True)
    return TokenScore(token, float(logprobs[token]), tuple(pairs))


async def score_prompt(session: Session, prompt: Sequence[int], top: int) -> list[TokenScore | None]:
    """The score of each token of ``prompt``; ``None`` for the first, before which there is nothing.

    The session must be empty, and holds the prompt afterwards.

    Raises:
        PromptTooLong, UsageError: before anything was sent.
        ShoalError: the session is lost or a step failed.
    """
    scores: list[TokenScore | None] = [None]
    for start in range(0, len(prompt), SCORED_AT_ONCE):
        piece = prompt[start : start + SCORED_AT_ONCE]
        logits = await session.step(piece, sequence_length=len(prompt))
        following = prompt[start + 1 : start + 1 + len(piece)]
        scores += await trio.to_thread.run_sync(_scores, logits, following, top)
    return scores


def _scores(logits: Floats, following: Sequence[int], top: int) -> list[TokenScore]:
    return [score(row, token, top) for row, token in zip(logits, following, strict=False)]
