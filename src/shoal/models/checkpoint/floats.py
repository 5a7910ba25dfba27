"""Tensors whose bytes are not their elements, as float32: a GGUF file's blocks, published quantisations."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.entry import QuantizedEntry
from shoal.models.quantized.reader import MappedRows, read_quantized


class StoredMatrix(Protocol):
    """A matrix that stays pages of its file: rows become float32 when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: NDArray[np.intp], /) -> NDArray[np.float32]: ...


def read_float32(entry: TensorEntry) -> NDArray[np.float32]:
    """A tensor in float32, ``entry.shape``.

    Raises:
        BadWeights: its file cannot be read or became shorter, or what is in it cannot be.
        UnsupportedModel: the gguf package cannot unpack its type of block.
    """
    if isinstance(entry, QuantizedEntry):
        return read_quantized(entry)
    from shoal.models.gguf import weights  # noqa: PLC0415 - the gguf package, which few need

    return weights.read_floats(entry)


def map_rows(entry: TensorEntry) -> StoredMatrix:
    """A matrix of which rows are read as they are needed. Raises as :func:`read_float32`."""
    if isinstance(entry, QuantizedEntry):
        return MappedRows(entry)
    from shoal.models.gguf.weights import GgufRows  # noqa: PLC0415 - the gguf package, which few need

    return GgufRows(entry)
