"""The tensors of a graph's request: which value of its manifest each is, its type and its shape.

How many bytes each takes follows from these; all together are the payload, to the byte, one behind the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from shoal.types import ARRAY_BYTES, ArrayType

MAX_ARRAYS = 64
"""Tensors of one message."""
MAX_ARRAY_RANK = 8


class ArraySpec(Struct, frozen=True, array_like=True, gc=False):
    """One tensor: its elements in C order, little-endian."""

    value: Annotated[int, Meta(ge=0, lt=1 << 16)]
    """By its place in the graph's manifest."""
    dtype: ArrayType
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 31)], ...], Meta(max_length=MAX_ARRAY_RANK)]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * ARRAY_BYTES[self.dtype]


def array_bytes(arrays: Sequence[ArraySpec]) -> int:
    """Bytes of all tensors together."""
    return sum(array.size for array in arrays)
