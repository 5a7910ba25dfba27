"""How a prompt is cut, so that hop 2 works on one piece while hop 1 works on the next. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shoal.models.build.rope_scaling import RopeScaling
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
JOINED = 8
"""Single tokens that are sent again as one piece. Up to here a row's bits do not depend on its company."""


class Piece(NamedTuple):
    """Tokens that go through the hops in one step."""

    token_ids: list[int]
    sequence_length: int = 0
    """Tokens of the sequence that they are a piece of, where the model's rotary frequencies go by it."""


def joined(pieces: Sequence[Piece]) -> list[Piece]:
    """The same tokens, with runs of single ones in pieces of up to ``JOINED``."""
    found: list[Piece] = []
    running = False  # whether the last piece is a run of single tokens
    for piece in pieces:
        single = len(piece.token_ids) == 1 and not piece.sequence_length
        if running and single and len(found[-1].token_ids) < JOINED:
            found[-1].token_ids.append(piece.token_ids[0])
        else:
            found.append(Piece(list(piece.token_ids), piece.sequence_length))
        running = single
    return found


def outdated(pieces: Sequence[Piece], scaling: RopeScaling, length: int) -> bool:
    """Whether the keys of ``pieces`` are not those with which a sequence goes on to ``length`` tokens.

    Keys with other frequencies stay where the model keeps them and the sequence has only grown; not where it
    was rolled back into what was run at once, which was longer than it is now.
    """
    if not scaling:
        return False
    now, end = scaling.frequencies(length), sum(len(piece.token_ids) for piece in pieces)
    return any(
        scaling.frequencies(piece.sequence_length) != now
        for piece in pieces
        if scaling.recomputed or piece.sequence_length > end
    )


def reusable(pieces: Sequence[Piece], scaling: RopeScaling, prompt: Sequence[int]) -> int:
    """How many tokens of ``prompt`` need not be computed where ``pieces`` were; its last one always does.

    None where the whole prompt, run at once, would have keys with other frequencies.
    """
    now, shared = scaling.frequencies(len(prompt)), 0
    for piece in pieces:
        same = _same(piece.token_ids, prompt, shared, len(prompt) - 1)
        if same and scaling.frequencies(piece.sequence_length) != now:
            return 0
        shared += same
        if same < len(piece.token_ids):
            break
    return shared


def _same(token_ids: Sequence[int], prompt: Sequence[int], start: int, end: int) -> int:
    limit = max(min(len(token_ids), end - start), 0)
    return next((i for i in range(limit) if token_ids[i] != prompt[start + i]), limit)


def piece_tokens(format: Format, prompt: int, stages: int) -> int:
    """Tokens of each piece of a prompt of ``prompt`` tokens on a route of ``stages`` hops."""
    if format == "fp32":
        return EXACT
    if stages == 1:
        return MOST
    return max(LEAST, min(MOST, -(-prompt // (PIECES_PER_STAGE * stages))))
