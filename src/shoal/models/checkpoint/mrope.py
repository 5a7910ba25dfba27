"""Rotary positions of rows of pictures, in three dimensions (M-RoPE: Wang et al., "Qwen2-VL", 2024). Pure.

A token of text has one position. A row of a picture has three, and each turns a section of a head's pairs:

===========  ====================================================
section      position of a row of a picture
===========  ====================================================
temporal     p, that of a token of text in the place of the first
height       p + how many rows are above it
width        p + how many are left of it
===========  ====================================================

Text behind a picture of ``high`` times ``wide`` rows goes on from p + max(high, wide), and so does the next
picture. So positions follow from a token's place and the pictures before it, in whatever pieces and by
whomever they are computed; of text alone all three are its place, and this is RoPE.
"""

from __future__ import annotations

from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt

from shoal.errors import StepFailed

Grids: TypeAlias = "tuple[tuple[int, int, int], ...]"
"""Pictures among tokens, in order: the place of the first row, and how many rows it is high and wide."""
Sections: TypeAlias = "tuple[int, int, int]"
"""How many pairs of a head's elements turn by the temporal position, how many by the height, by the width."""
Positions: TypeAlias = "npt.NDArray[np.int32]"
MROPE_SECTIONS = "mrope_section"
"""The field of a config that says them."""


def rotary_positions(first: int, count: int, grids: Grids) -> Positions:
    """The three positions ``[count, 3]`` of the tokens in places ``[first, first + count)``.

    Args:
        grids: all pictures that begin before the last of them.
    """
    saved = 0  # positions by which text is behind its place
    within: list[tuple[int, int, int]] = []
    for place, high, wide in grids:
        if place + high * wide > first:
            within.append((place, high, wide))
        else:  # of one that lies before, no more counts: steps of one token are behind all of them
            saved += high * wide - max(high, wide)
    places = np.arange(first, first + count, dtype=np.int32)
    found = np.repeat(places[:, None] - saved, 3, axis=1)
    for place, high, wide in within:
        rows = places - place
        inside = (rows >= 0) & (rows < high * wide)
        beside = np.stack((rows * 0, rows // wide, rows % wide), axis=1)
        found[inside] = place - saved + beside[inside]
        saved += high * wide - max(high, wide)
        behind = rows >= high * wide
        found[behind] = places[behind, None] - saved
    return found


def read_sections(given: object, head_dim: object) -> Sections | None:
    """The sections that a config says; ``None``: it says none that add up to half of a head."""
    if not isinstance(given, list | tuple) or not isinstance(head_dim, int):
        return None
    numbers = cast("list[object]", given)
    if len(numbers) != 3 or not all(type(number) is int and number >= 0 for number in numbers):
        return None
    found = cast(Sections, tuple(numbers))
    return found if 2 * sum(found) == head_dim else None


def check_grids(sections: Sections | None, grids: Grids) -> None:
    """Raises StepFailed: pictures have positions of their own in no model without sections."""
    if grids and sections is None:
        raise StepFailed("no rows of this model have three positions")
