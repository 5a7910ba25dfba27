"""From a text's last hidden states to one vector. Pure, in float32 as sentence-transformers does it."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Pooling = Literal["cls", "last", "mean", "max", "weighted_mean", "mean_sqrt_len"]
"""The first token's, the last one's, or one of all tokens: ``weighted_mean`` gives later ones more weight."""
Vector: TypeAlias = "NDArray[np.float32]"
LEAST_LENGTH = 1e-12
"""A shorter vector has no direction; it is divided by this, as torch does."""


def tokens_needed(pooling: Pooling, tokens: int) -> int:
    """Of how many of the last tokens the hidden states are needed."""
    return 1 if pooling == "last" else tokens


def pool(hidden: NDArray[Any], pooling: Pooling) -> Vector:
    """One vector ``[width]`` of ``[tokens, width]``; for ``last`` the last row is enough."""
    hidden = np.asarray(hidden, np.float32)
    n = len(hidden)
    match pooling:
        case "cls":
            return hidden[0]
        case "last":
            return hidden[-1]
        case "max":
            return hidden.max(0)
        case "mean":
            return hidden.sum(0, dtype=np.float32) / np.float32(n)
        case "mean_sqrt_len":
            return hidden.sum(0, dtype=np.float32) / np.sqrt(np.float32(n))
        case "weighted_mean":
            weights = np.arange(1, n + 1, dtype=np.float32)[:, None]
            return (hidden * weights).sum(0, dtype=np.float32) / weights.sum(dtype=np.float32)


def unit(vector: Vector) -> Vector:
    """The same direction with length 1."""
    return vector / max(np.float32(np.linalg.norm(vector)), np.float32(LEAST_LENGTH))
