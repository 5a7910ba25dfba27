"""Messages of graphs: what a session's segments are to make of some tensors, in the clear or encrypted.

Of tensors in the clear a message says which value of the manifest each is, its type and its shape. How many
bytes each takes follows from these; all together are the payload, to the byte, one behind the other.

Of a linear graph the rows may stay encrypted: a node that computes on ciphertexts has no key::

    client → InferEncrypted      the columns of some rows, each a ciphertext
    client ← InferredEncrypted | Failed
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from msgspec import Meta, Struct

from shoal.types import ARRAY_BYTES, ArrayType
from shoal.wire.fields import Microseconds, Number, SessionBytes, TaggedMessage

MAX_ARRAYS = 64
"""Tensors of one message."""
MAX_ARRAY_RANK = 8
MAX_CIPHERTEXTS = 513
"""Of one message: a column each, and one of ones."""
MAX_CIPHERTEXT = 260 << 10
"""Bytes of one."""


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


CiphertextSizes = Annotated[
    tuple[Annotated[int, Meta(ge=1, le=MAX_CIPHERTEXT)], ...],
    Meta(min_length=1, max_length=MAX_CIPHERTEXTS),
]
GraphArrays = Annotated[tuple[ArraySpec, ...], Meta(max_length=MAX_ARRAYS)]


class Infer(TaggedMessage, frozen=True, tag="infer"):
    """Ask for what a session's segments make of some tensors; its payload: those. Asking again gives the
    same."""

    session: SessionBytes
    number: Number
    """The answer has it too; who asks chooses it."""
    arrays: GraphArrays
    """All that the segments take, in the order of their manifest."""

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return array_bytes(self.arrays)


class Inferred(TaggedMessage, frozen=True, tag="inferred"):
    """What the segments give; its payload: the tensors."""

    session: SessionBytes
    number: Number
    arrays: GraphArrays
    compute_us: Microseconds = 0
    waiting_us: Microseconds = 0

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return array_bytes(self.arrays)


class InferEncrypted(TaggedMessage, frozen=True, tag="infer_encrypted"):
    """Ask for what a linear graph makes of rows that are encrypted; its payload: the ciphertexts, one behind
    the other."""

    session: SessionBytes
    number: Number
    """The answer has it too; who asks chooses it."""
    parameters: Annotated[str, Meta(min_length=1, max_length=64)]
    """The name of the set by which they are encrypted."""
    sizes: CiphertextSizes

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(self.sizes)


class InferredEncrypted(TaggedMessage, frozen=True, tag="inferred_encrypted"):
    """The scores, encrypted; its payload: a ciphertext for each."""

    session: SessionBytes
    number: Number
    sizes: CiphertextSizes
    exponent: Annotated[int, Meta(ge=-256, le=256)]
    """They are to be multiplied by two to this power: that much larger than 1 the weights are together."""
    compute_us: Microseconds = 0
    waiting_us: Microseconds = 0

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return sum(self.sizes)
