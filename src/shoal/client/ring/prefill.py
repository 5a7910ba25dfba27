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


def piece_tokens(format: Format, prompt: int, stages: int) -> int:
    """Tokens of each piece of a prompt of ``prompt`` tokens on a route of ``stages`` hops."""
    if format == "fp32":
        return EXACT
    if stages == 1:
        return MOST
    return max(LEAST, min(MOST, -(-prompt // (PIECES_PER_STAGE * stages))))
