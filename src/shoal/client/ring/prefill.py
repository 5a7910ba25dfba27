"""How a prompt is cut, so that hop 2 works on one piece while hop 1 works on the next. Pure."""

from __future__ import annotations

from shoal.types import Format

LEAST = 64
"""Fewer rows than this leave a matrix kernel waiting for memory."""
MOST = 512
"""More rows make no kernel faster, and others' decode steps wait longer for what is under way."""
EXACT = 1024
"""What fp32 keeps whole: the last bits of a forward depend on how many rows it has."""
PIECES_PER_STAGE = 4
"""With ``p`` pieces over ``n`` stages the last result comes after ``(p + n - 1) / p`` times the work of one
stage: at most 25% over the least with four pieces a stage."""
THIN_PIECES = 24
"""The same over a link that takes longer than computing: the more pieces, the sooner it has its first and the
less is left to do after its last; each costs a message and a small forward, for which there is time."""
THIN_SHARE = 0.025
"""Of a decode step. A row of a long piece takes about a tenth of one to compute, as it shares the reading of
the weights; over a link that takes a quarter of that, smaller pieces save more than they cost."""
USUAL_STEP_S = 0.001
"""A decode step at a hop, where none was timed: a span of a small model on a CPU."""


def is_thin(row_bytes: float, bytes_s: float | None, step_s: float) -> bool:
    """Whether a link takes long for a row of a prompt, beside what a hop takes to compute it.

    Args:
        bytes_s: of the link; ``None`` where it is not known.
        step_s: what a decode step takes at the slowest hop; 0 where it is not known.
    """
    return bytes_s is not None and row_bytes / bytes_s > THIN_SHARE * (step_s or USUAL_STEP_S)


def piece_tokens(format: Format, prompt: int, stages: int, *, thin: bool = False) -> int:
    """Tokens of each piece of a prompt of ``prompt`` tokens on a route of ``stages`` hops.

    Args:
        thin: whether a link on the way is what the prompt waits for.
    """
    if format == "fp32":
        return EXACT
    if stages == 1:
        return MOST
    pieces = THIN_PIECES if thin else PIECES_PER_STAGE
    return max(LEAST, min(MOST, -(-prompt // (pieces * stages))))
