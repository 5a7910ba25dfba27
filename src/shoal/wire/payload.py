"""What a step's payload consists of: a few named, typed tensors, one behind the other in the order declared.

How many bytes each takes follows from its codec and its shape, so nothing on the wire can contradict them;
all together are the payload, to the byte. A peer that does not know a name refuses the step instead of
computing without that tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from msgspec import Meta, Struct

from shoal.errors import RemoteProtocolError
from shoal.types import Codec

MAX_TENSORS = 8
"""Of one step. Each costs a header its name and shape, and whoever reads it a look at both."""
MAX_DIMENSION = 1 << 22

INT8_BLOCK = 64
"""Elements of a row that share one scale in int8 and int6; a row's last block may be short."""

INT6_GROUP = 256
"""Elements of a row of which the int6 codec keeps the largest in 16 bits; a row's last group may be short."""
INT6_OUTLIERS = 3
"""How many of a whole group; of a short one as many of its elements, and one at least."""

HIDDEN: Literal["hidden"] = "hidden"
"""Hidden states, ``rows × width``: what the blocks before have made of each token."""

RANKS = {HIDDEN: 2}
"""The tensors that there are, and how many dimensions each has."""


class TensorSpec(Struct, frozen=True, array_like=True, gc=False):
    """One tensor of a payload; its elements are encoded row by row, rows being its last dimension."""

    name: Annotated[str, Meta(max_length=32)]
    codec: Codec
    shape: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=MAX_DIMENSION)], ...], Meta(min_length=1, max_length=4)
    ]

    @property
    def rows(self) -> int:
        """Rows of a matrix."""
        return self.shape[0]

    @property
    def width(self) -> int:
        """Elements of each row."""
        return self.shape[-1]


def hidden_states(codec: Codec, rows: int, width: int) -> tuple[TensorSpec, ...]:
    """What a payload of hidden states alone declares."""
    return (TensorSpec(HIDDEN, codec, (rows, width)),)


def declared_bytes(tensors: Sequence[TensorSpec]) -> int:
    """Check what a peer declares, and add up its bytes.

    Raises:
        RemoteProtocolError: a tensor that nobody knows, one that comes twice, or one of another rank.
    """
    total = 0
    for tensor in tensors:
        shape = tensor.shape
        if RANKS.get(tensor.name) != len(shape) or not shape[-1]:
            raise _misdeclared(tensor)
        total += encoded_bytes(math.prod(shape[:-1]), shape[-1], tensor.codec)
    if len(tensors) > 1 and len({tensor.name for tensor in tensors}) < len(tensors):
        raise RemoteProtocolError("a step with two tensors of one name")
    return total


def _misdeclared(tensor: TensorSpec) -> RemoteProtocolError:
    rank = RANKS.get(tensor.name)
    if rank is None:
        return RemoteProtocolError(f"a step with a tensor named {tensor.name!r}, which is not known here")
    if len(tensor.shape) != rank:
        return RemoteProtocolError(
            f"the tensor {tensor.name!r} has {len(tensor.shape)} dimensions, not {rank}"
        )
    return RemoteProtocolError(f"the tensor {tensor.name!r} has rows of no elements")


def encoded_bytes(rows: int, width: int, codec: Codec) -> int:
    """Bytes of ``rows × width`` elements in ``codec``."""
    blocks = -(-width // INT8_BLOCK)
    match codec:
        case "float32":
            return rows * width * 4
        case "bfloat16":
            return rows * width * 2
        case "int8":
            return rows * (4 * blocks + width)
        case "int6":
            return rows * (3 * int6_outliers(width) + 2 * blocks + (6 * width + 7) // 8)


def int6_outliers(width: int) -> int:
    """Elements of a row that the int6 codec keeps in 16 bits."""
    groups, rest = divmod(width, INT6_GROUP)
    return groups * INT6_OUTLIERS + -(-INT6_OUTLIERS * rest // INT6_GROUP)
