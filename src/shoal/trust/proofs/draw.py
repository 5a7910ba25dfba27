"""Which block and which window of an answer are to be proved. Pure: chance is handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shoal.trust.answer import KeptAnswer
from shoal.trust.audit import Chance
from shoal.trust.rows import WINDOW
from shoal.types import Format, Span

PROVABLE_FORMATS: tuple[Format, ...] = ("int8", "w8a8")
"""In others products have floats, or scales for groups: there are no proofs of these."""

MAX_PAST = 32 << 20
"""Bytes of keys and values of one proof: of a longer session no later window is drawn."""
PAST_WITHIN_S = 4.0
"""What they may take by the speed of the link."""


@dataclass(frozen=True, slots=True)
class ProofTarget:
    """A block of a hop, in a window of an answer."""

    hop: int
    span: Span
    block: int
    window: int
    rows: int

    @property
    def first(self) -> int:
        """The first position."""
        return self.window * WINDOW


def provable_windows(hops: Mapping[int, int], bytes_s: Sequence[float], window_bytes: int) -> dict[int, int]:
    """Of the hops that can be asked, how many windows of each can be proved.

    A proof has the keys and values of all positions before its window.

    Args:
        hops: what :func:`shoal.trust.audit.auditable` says.
        bytes_s: of the link to each hop of the answer.
        window_bytes: of a block's keys and values of one window.
    """
    reach = {hop: int(min(MAX_PAST, bytes_s[hop] * PAST_WITHIN_S) / window_bytes) for hop in hops}
    return {hop: min(count, 1 + reach[hop]) for hop, count in hops.items()}


def draw_target(answer: KeptAnswer, hops: Mapping[int, int], chance: Chance) -> ProofTarget | None:
    """Any block and any window, all as likely; ``None``: nothing can be proved.

    Args:
        hops: those that can be asked, with how many windows of each.
    """
    blocks = [
        (hop, block) for hop in sorted(hops) for block in range(answer.hops[hop].start, answer.hops[hop].end)
    ]
    if not blocks:
        return None
    hop, block = blocks[int(chance() * len(blocks))]
    window = int(chance() * hops[hop])
    rows = min(WINDOW, answer.tokens - window * WINDOW)
    return ProofTarget(hop, answer.hops[hop].span, block, window, rows)
