"""A checkpoint's tensors as arrays: read one at a time, joined and packed, or left in their file's pages.

What is read here was checked when the checkpoint was opened (:mod:`shoal.models.checkpoint.headers`): each
tensor lies inside of its file and has as many bytes as its shape needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from shoal.errors import BadWeights
from shoal.executor.arrays import Array, Floats, empty, widen
from shoal.executor.kernels.c_kernels import Matrix, pack
from shoal.executor.kernels.groups import pack_groups
from shoal.models.checkpoint.checkpoint import Checkpoint
from shoal.models.checkpoint.floats import StoredMatrix, map_rows, read_float32
from shoal.models.checkpoint.grouped import join_groups
from shoal.models.checkpoint.headers import ITEM_SIZE, TensorEntry
from shoal.models.checkpoint.published import joined_grouping, read_grouped
from shoal.types import Format

DTYPES: dict[str, npt.DTypeLike] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
}
"""By safetensors' name, how an array holds what weights are stored in. Files are little-endian, as we are."""


def is_readable(entry: TensorEntry) -> bool:
    """Whether a tensor's elements are numbers with a fraction: floating, the blocks of a GGUF file, or
    quantised."""
    return entry.dtype in DTYPES or entry.dtype not in ITEM_SIZE


class Tensors:
    """A checkpoint's tensors, read one at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __contains__(self, name: str) -> bool:
        return name in self._checkpoint.tensors

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies.

        Raises:
            BadWeights: there is none of that name, or its elements are no numbers with a fraction.
        """
        entry = self._checkpoint.tensors.get(name)
        if entry is None:
            raise BadWeights(
                f"{self._checkpoint.folder}: tensor {name} is missing",
                check="check that the model was downloaded completely",
            )
        if not is_readable(entry):
            raise BadWeights(
                f"{self._checkpoint.folder}: tensor {name} is in {entry.dtype}, which no weights are"
            )
        return entry

    def vector(self, name: str, size: int, offset: float = 0.0) -> Floats:
        """A norm's or a bias's float32 ``[size]``, plus ``offset``. Raises as ``matrix``."""
        entry = self.entry(name)
        if entry.shape != (size,):
            raise self._wrong(entry, (size,))
        found = empty((size,))
        np.add(widen(_read([entry], (size,))), np.float32(offset), out=found)
        return found

    def matrix(self, names: Sequence[str], rows: int, cols: int, format: Format) -> Matrix:
        """The weights and biases of linear layers, one below the other, ``[rows, cols]`` in all.

        Raises:
            BadWeights: a tensor is missing, cannot be read or has another shape.
        """
        weights = [self.entry(f"{name}.weight") for name in names]
        if any(len(w.shape) != 2 or w.shape[1] != cols for w in weights) or _rows(weights) != rows:
            raise self._wrong(weights[0], (rows, cols))
        biases = [self.entry(f"{name}.bias") for name in names if f"{name}.bias" in self]
        if biases and (any(len(b.shape) != 1 for b in biases) or _rows(biases) != rows):
            raise self._wrong(biases[0], (rows,))
        bias = _read(biases, (rows,)) if biases else None
        if format == "published" and joined_grouping(weights) is not None:
            return pack_groups(join_groups([read_grouped(entry) for entry in weights]), bias)
        return pack(_read(weights, (rows, cols)), format, bias)

    def mapped(self, name: str, cols: int) -> Array | StoredMatrix:
        """A matrix ``[n, cols]`` that stays pages of its file: only the rows that are used come into memory.

        Raises:
            BadWeights: it is missing, or has another shape.
        """
        entry = self.entry(name)
        if len(entry.shape) != 2 or entry.shape[1] != cols:
            raise self._wrong(entry, (*entry.shape[:1], cols))
        if not entry.is_plain:
            return map_rows(entry)
        return np.memmap(entry.file, DTYPES[entry.dtype], "r", entry.begin, entry.shape).view(np.ndarray)

    def _wrong(self, entry: TensorEntry, wanted: tuple[int, ...]) -> BadWeights:
        return BadWeights(
            f"{self._checkpoint.folder}: tensor {entry.name} is {list(entry.shape)} where the config makes "
            f"it part of {list(wanted)}",
            check="check that the config and the weights are of the same model",
        )


def _rows(entries: Sequence[TensorEntry]) -> int:
    return sum(entry.shape[0] for entry in entries)


def _read(entries: Sequence[TensorEntry], shape: tuple[int, ...]) -> Array:
    """Tensors one below the other, as stored; as float32 when they are stored in different ways.

    Raises:
        BadWeights: a file has become shorter than its header says, or cannot be read.
    """
    kinds = {entry.dtype if entry.is_plain else "" for entry in entries}
    if kinds == {""} and len(entries) == 1:
        return read_float32(entries[0])
    alike = len(kinds) == 1 and "" not in kinds
    found = empty(shape, DTYPES[entries[0].dtype] if alike else np.float32)
    at = 0
    for entry in entries:
        part = found[at : at + entry.shape[0]]
        if alike:
            _fill(part, entry)
        else:
            part[...] = widen(_read([entry], entry.shape))
        at += entry.shape[0]
    return found


def _fill(array: npt.NDArray[Any], entry: TensorEntry) -> None:
    """Read rather than mapped: mapped pages would stay in memory beside what is packed of them."""
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.begin)
            got = stream.readinto(array.reshape(-1).view(np.uint8).data)
    except OSError as error:
        raise BadWeights(
            f"{entry.file}: {error.strerror or error}", check="check the disk for errors"
        ) from error
    if got != array.nbytes:
        raise BadWeights(f"{entry.file}: it ends within tensor {entry.name}", check="fetch the model again")
