"""How a prompt is cut, so that hop 2 works on one piece while hop 1 works on the next. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from shoal.client.transcript import Piece
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
FAR_S = 0.005
"""A round trip that no local network has: beyond it is the internet, whose links may be thin."""

LinkWidth = Literal["wide", "thin", "unknown"]
"""Whether a link takes long for a row of a prompt, beside what a hop takes to compute it; or whether it goes
so far that it may, and was not timed yet."""


def link_width(row_bytes: float, bytes_s: float | None, rtt_s: float | None, step_s: float) -> LinkWidth:
    """What is known of a link.

    Args:
        bytes_s: that it carries in a second; ``None`` where it was not timed.
        rtt_s: its round trip; ``None`` where none was measured.
        step_s: what a decode step takes at the slowest hop; 0 where it is not known.
    """
    if bytes_s is None:
        return "unknown" if rtt_s is not None and rtt_s > FAR_S else "wide"
    return "thin" if row_bytes / bytes_s > THIN_SHARE * (step_s or USUAL_STEP_S) else "wide"


def piece_tokens(format: Format, prompt: int, stages: int, *, width: LinkWidth = "wide") -> int:
    """Tokens of each piece of a prompt of ``prompt`` tokens on a route of ``stages`` hops.

    Args:
        width: of the links on the way; one that is not known is taken for a thin one until it is
            (:func:`grow`).
    """
    if format == "fp32":
        return EXACT
    if stages == 1:
        return MOST
    pieces = PIECES_PER_STAGE if width == "wide" else THIN_PIECES
    return max(LEAST, min(MOST, -(-prompt // (pieces * stages))))


def grow(pieces: Sequence[Piece], most: Callable[[], int]) -> Iterator[Piece]:
    """The pieces of a prompt, several as one where they are together no longer than ``most()`` tokens.

    It is asked anew for each, when that is about to be sent: what is known of a link by then, the pieces
    before have shown. The first stays as it is, as what an encoder gave is a piece of its own.
    """
    waiting = deque(pieces)
    if waiting:
        yield waiting.popleft()
    while waiting:
        token_ids, told = waiting.popleft()
        limit = most()
        while waiting and len(token_ids) + len(waiting[0].token_ids) <= limit:
            token_ids = token_ids + waiting.popleft().token_ids
        yield Piece(token_ids, told)
