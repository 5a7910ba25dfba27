"""The weights of quantised tensors as float32: whole, or some rows of a matrix that stays in its file."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from shoal.errors import BadWeights
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.codes import powers_of_two
from shoal.models.quantized.entry import (
    QuantizedEntry,
    QuantizedRows,
    RowIndex,
    RowReader,
    bad,
)

PIECE = 1 << 17
"""Elements that are converted at once: what numpy makes on the way stays in the processor's cache."""
MIN_ROWS = 32
"""Rows in a piece, at least. Where a file has the columns of a matrix one after another, fewer would read
each line of the cache more than once."""
DTYPES: dict[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "F8_E4M3": np.uint8,
    "F8_E5M2": np.uint8,
    "F8_E8M0": np.uint8,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.uint8,
}
"""By safetensors' name. Files are little-endian, as we are."""


def read_quantized(entry: QuantizedEntry) -> NDArray[np.float32]:
    """A weight in float32, ``entry.shape``: the nearest to what its codes, scales and zeros mean.

    Raises:
        BadWeights: a file cannot be read or became shorter, or what is in it cannot be.
    """
    found = np.empty(entry.shape, np.float32)
    *_, rows, _ = entry.stored_shape
    reader = _open(entry, {name: read_part(part) for name, part in entry.parts.items()})
    for number, at in enumerate(itertools.product(*map(range, entry.shape[:-2]))):
        matrix = found[at].T if entry.turned else found[at]
        for piece in pieces(entry):
            shifted = slice(number * rows + piece.start, number * rows + piece.stop)
            matrix[piece] = _floats(entry, reader, shifted)
    return found


def read_rows(entry: QuantizedEntry) -> Iterator[QuantizedRows]:
    """The rows of a matrix that is stored as it is, as codes and scales, some at a time.

    Raises:
        BadWeights: see :func:`read_quantized`.
    """
    reader = _open(entry, {name: read_part(part) for name, part in entry.parts.items()})
    for piece in pieces(entry):
        yield _rows(entry, reader, piece)


def pieces(entry: QuantizedEntry) -> Iterator[slice]:
    """The rows of a matrix as it is stored, in pieces that are converted at once."""
    *_, rows, cols = entry.stored_shape
    step = max(PIECE // max(cols, 1) // MIN_ROWS, 1) * MIN_ROWS
    for at in range(0, rows, step):
        yield slice(at, min(at + step, rows))


class MappedRows:
    """A matrix that stays pages of its file: rows become float32 when they are asked for."""

    def __init__(self, entry: QuantizedEntry) -> None:
        self._entry = entry
        self._reader = _open(entry, {name: _mapped(part) for name, part in entry.parts.items()})

    def __len__(self) -> int:
        return self._entry.shape[0]

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """float32 ``[len(rows), cols]``. Raises as :func:`read_quantized`."""
        return _floats(self._entry, self._reader, rows)


def read_part(part: TensorEntry) -> NDArray[Any]:
    """A stored tensor: of floats float32, of all else the elements as they are.

    Raises:
        BadWeights: its file cannot be read, or became shorter.
    """
    kind = np.dtype(DTYPES[part.dtype])
    try:
        with part.file.open("rb") as stream:
            stream.seek(part.begin)
            raw = np.fromfile(stream, kind, part.size // kind.itemsize)
    except OSError as error:
        raise BadWeights(
            f"{part.file}: {error.strerror or error}", check="check that the file is there, and the disk"
        ) from error
    if len(raw) != math.prod(part.shape):
        raise BadWeights(f"{part.file}: it ends within tensor {part.name}", check="fetch the model again")
    return _widened(raw.reshape(part.shape), part.dtype)


def _mapped(part: TensorEntry) -> NDArray[Any]:
    """As :func:`read_part`, but integers, of which there are most, are left in the file."""
    if part.dtype not in ("I32", "I8", "U8", "F8_E4M3", "F8_E5M2") or not part.size:
        return read_part(part)
    try:
        found = np.memmap(part.file, DTYPES[part.dtype], "r", part.begin, part.shape)
    except (OSError, ValueError) as error:
        raise BadWeights(
            f"{part.file}: it cannot be read ({error})", check="fetch the model again"
        ) from error
    return found.view(np.ndarray)


def _widened(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype == "BF16":
        return np.left_shift(array, 16, dtype=np.uint32).view(np.float32)
    if dtype == "F8_E8M0":
        return powers_of_two(array)
    return array.astype(np.float32, copy=False) if array.dtype.kind == "f" else array


def _open(entry: QuantizedEntry, parts: dict[str, NDArray[Any]]) -> RowReader:
    try:
        return entry.layout.open(parts)
    except ValueError as error:
        raise bad(entry, str(error)) from error


def _rows(entry: QuantizedEntry, reader: RowReader, rows: RowIndex) -> QuantizedRows:
    try:
        return reader(rows)
    except ValueError as error:
        raise bad(entry, str(error)) from error


def _floats(entry: QuantizedEntry, reader: RowReader, rows: RowIndex) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # what overflows is found below
        found = dequantize(_rows(entry, reader, rows))
    if not np.isfinite(found).all():
        raise bad(entry, "has weights that are NaN or infinite")
    return found


def dequantize(rows: QuantizedRows) -> NDArray[np.float32]:
    """float32 ``[n, cols]``."""
    found = rows.codes.astype(np.float32, order="C")
    scales, zeros = rows.scales, rows.zeros
    if rows.group_of is not None:
        scales = scales[:, rows.group_of]
        zeros = None if zeros is None else zeros[:, rows.group_of]
    grouped = found.reshape(*scales.shape, -1)
    if zeros is not None:
        grouped -= zeros[..., None].astype(np.float32)
    grouped *= scales[..., None]
    return found
