"""What it would take to compute more than small linear graphs on encrypted inputs: measured, and multiplied.

``python -m shoal.testing.encrypted.cost`` measures it again.
"""

from __future__ import annotations

WIDTH = 576
"""Of SmolLM2-135M's hidden states."""
MATRIX_S = 5.8
"""A matrix of WIDTH × WIDTH times an encrypted vector, by TenSEAL 0.3.18: seconds of one core."""
ANSWER_TOKENS = 300
EXAMPLES = {"SmolLM2-135M": 135_000_000, "a model of 70 billion weights": 70_000_000_000}
"""Weights that a token goes through."""


def encrypted_seconds(weights: int) -> float:
    """How long products of so many weights and one encrypted vector take, on one core."""
    return MATRIX_S * weights / WIDTH**2


def encrypted_cost(weights: int | None, each: str) -> str:
    """In sentences, what the weights of a model cost.

    Args:
        weights: ``None`` for a language model of any size.
        each: what they are multiplied with once: a row, a token.
    """
    measured = f"One matrix of {WIDTH}×{WIDTH} takes {MATRIX_S:.1f} s for an encrypted {each}, on one core"
    beside = "and what is not linear cannot be computed so"
    if weights is not None:
        told = _told(encrypted_seconds(weights))
        return f"{measured}: its weights alone would take {told} a {each}, {beside}."
    told = " and ".join(
        f"{_told(encrypted_seconds(count) * ANSWER_TOKENS)} with {name}" for name, count in EXAMPLES.items()
    )
    return f"{measured}: an answer of {ANSWER_TOKENS} tokens would take {told}, {beside}."


def _told(seconds: float) -> str:
    for unit, length in (("years", 365 * 86400.0), ("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} seconds"
