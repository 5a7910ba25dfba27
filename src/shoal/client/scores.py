"""How likely tokens were: log probabilities from logits, as they left the model.

Temperature, penalties and grammars choose among tokens; they do not change what is reported here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shoal.executor.arrays import Floats


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
