"""The tensors of a GGUF file, read where they lie: as bytes of some rows, or as float32.

A GGUF's blocks are small integers times a float16 scale plus a float16 minimum (Q4_1): the products need more
bits than bfloat16 or float16 have, so float32 is the smallest type that keeps what the file means.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
from gguf import dequantize
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.checkpoint.headers import TensorEntry

PIECE = 1 << 16
"""Elements that are converted at once: what numpy makes on the way stays in the processor's cache. With 16
times as many, a conversion takes 1.6 times as long."""


def block_size(dtype: str) -> tuple[int, int]:
    """Elements of a block of a GGUF type, and its bytes.

    Raises:
        KeyError: there is no such type.
    """
    return GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]


def read_blocks(entry: TensorEntry) -> NDArray[np.uint8]:
    """A tensor's bytes, ``[rows, bytes of a row]``, its rows in transformers' order.

    Raises:
        BadWeights: the file cannot be read, or became shorter.
    """
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.begin)
            raw = np.fromfile(stream, np.uint8, entry.size)
    except OSError as error:
        raise BadWeights(
            f"{entry.file}: {error.strerror or error}", check="check that the file is there, and the disk"
        ) from error
    if len(raw) < entry.size:
        raise BadWeights(f"{entry.file}: it ends within tensor {entry.name}", check="fetch the model again")
    rows = entry.shape[0] if entry.heads else math.prod(entry.shape[:-1])  # a bias has rows of one element
    found = raw.reshape(rows, entry.size // rows)
    return np.ascontiguousarray(found[_order(entry)]) if entry.heads else found


def read_floats(entry: TensorEntry) -> NDArray[np.float32]:
    """A tensor in float32, ``entry.shape``.

    Raises:
        BadWeights: see :func:`read_blocks`.
        UnsupportedModel: the gguf package cannot unpack its type of block.
    """
    raw = read_blocks(entry).reshape(-1)
    found = np.empty(math.prod(entry.shape), np.float32)
    elements, size = block_size(entry.dtype)
    step = max(PIECE // elements, 1)
    for at in range(0, len(raw) // size, step):
        piece = to_floats(raw[at * size : (at + step) * size], entry)
        found[at * elements : at * elements + len(piece)] = piece
    return found.reshape(entry.shape)


class GgufRows:
    """A matrix that stays pages of its file: rows become float32 when they are asked for."""

    def __init__(self, entry: TensorEntry) -> None:
        self._entry = entry
        rows, self._cols = entry.shape
        self._blocks = np.memmap(entry.file, np.uint8, "r", entry.begin, (rows, entry.size // rows))

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """float32 ``[len(rows), cols]``. Raises as :func:`read_floats`."""
        raw = np.ascontiguousarray(self._blocks[rows]).reshape(-1)
        return to_floats(raw, self._entry).reshape(len(rows), self._cols)


def _order(entry: TensorEntry) -> NDArray[np.intp]:
    """Which row of the file each row of the matrix is."""
    pairs = np.arange(entry.shape[0]).reshape(entry.heads, -1, 2)
    return pairs.swapaxes(1, 2).reshape(-1)


def to_floats(raw: NDArray[np.uint8], entry: TensorEntry) -> NDArray[np.float32]:
    """What blocks of a tensor mean, one after another.

    Raises:
        UnsupportedModel: the gguf package cannot unpack its type of block.
    """
    try:
        with np.errstate(all="ignore"):  # scales that overflow are found by the digest
            found = cast(
                "NDArray[np.float32]", dequantize(raw[None], GGMLQuantizationType[entry.dtype])
            ).reshape(-1)
    except NotImplementedError as error:
        raise UnsupportedModel(
            f"{entry.file}: the gguf package cannot unpack blocks of type {entry.dtype}",
            check="use another quantisation of the model, for example Q4_K_M or Q8_0",
        ) from error
    return found - np.float32(entry.less) if entry.less else found
