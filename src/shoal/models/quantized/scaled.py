"""Codes with scales for rows, groups of a row, or blocks of a matrix; and those that lie as weights would.

So do FP8 with block scales (DeepSeek), fbgemm's FP8, compressed-tensors' naive formats, bitsandbytes' int8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.models.checkpoint.headers import FLOATING, TensorEntry
from shoal.models.quantized.codes import FLOAT8
from shoal.models.quantized.entry import QuantizedRows, RowIndex, RowReader, StoredArrays, bad

SCALES = (*FLOATING, "F8_E8M0")


@dataclass(frozen=True, slots=True)
class ScaleGrid:
    """Which weights of matrices ``[rows, cols]``, one below the other, share a scale."""

    rows: int
    cols: int
    block: tuple[int, int]
    """Rows and columns that share one."""

    @property
    def shape(self) -> tuple[int, int]:
        """Scales of a matrix, down and across."""
        return -(-self.rows // self.block[0]), -(-self.cols // self.block[1])

    def blocks_of(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """In which row of all scales each row's are."""
        return rows // self.rows * self.shape[0] + rows % self.rows // self.block[0]

    def order(self, stored: NDArray[Any] | None) -> NDArray[np.intp] | None:
        """Of each column its group, where they are not of as many columns each, one after another.

        Raises:
            ValueError: a stored order names a group that is not there.
        """
        if stored is None:
            return np.arange(self.cols) // self.block[1] if self.cols % self.block[1] else None
        groups = self.shape[1]
        if not 0 <= int(stored.min()) <= int(stored.max()) < groups:
            raise ValueError(f"has columns of group {int(stored.max())}, and there are {groups} groups")
        return stored.astype(np.intp)


@dataclass(frozen=True, slots=True)
class ScaledLayout:
    """How matrices are stored whose codes lie as the weights would."""

    grid: ScaleGrid
    floats: str = ""
    """What codes are if they are no integers: ``F8_E4M3`` or ``F8_E5M2``."""
    divisor: float = 1.0
    """Of the scales."""
    has_zeros: bool = False

    @property
    def bits(self) -> int | None:
        return None if self.floats else 8

    @property
    def group(self) -> int:
        return self.grid.block[1]

    def open(self, parts: StoredArrays) -> RowReader:
        codes = parts["codes"].reshape(-1, self.grid.cols)
        scales: NDArray[np.float32] = parts["scales"].reshape(-1, self.grid.shape[1])
        if self.divisor != 1.0:
            scales = scales / np.float32(self.divisor)
        zeros = parts["zeros"].reshape(scales.shape) if "zeros" in parts else None
        order = self.grid.order(parts.get("g_idx"))
        table = FLOAT8.get(self.floats)

        def read(rows: RowIndex) -> QuantizedRows:
            at = self.grid.blocks_of(np.arange(len(codes))[rows])
            found = codes[rows] if table is None else table[codes[rows]]
            return QuantizedRows(found, scales[at], None if zeros is None else zeros[at], order)

        return read


def scale_grid(
    codes: TensorEntry, scales: TensorEntry, shape: tuple[int, ...], blocks: tuple[tuple[int, int], ...]
) -> ScaleGrid:
    """How scales lie over the weights of ``codes``.

    Args:
        shape: of the weights.
        blocks: which rows and columns may share a scale; 0: all of them.

    Raises:
        BadWeights: the scales' shape is of none of these.
    """
    if len(shape) < 2 or not all(shape):
        raise bad(codes, f"has the shape {list(shape)}, and should be a matrix")
    if scales.dtype not in SCALES:
        raise bad(scales, f"is {scales.dtype}, which no scale is")
    *lead, rows, cols = shape
    for down, across in blocks:
        grid = ScaleGrid(rows, cols, (down or rows, across or cols))
        if _same(scales.shape, (*lead, *grid.shape)):
            return grid
    wanted = " or ".join(f"{down or 'all'} x {across or 'all'}" for down, across in blocks)
    raise bad(
        scales,
        f"has the shape {list(scales.shape)}: weights {list(shape)} in blocks of {wanted} have other scales",
    )


def _same(shape: tuple[int, ...], counts: tuple[int, ...]) -> bool:
    """Whether scales are so many; dimensions of 1 may be left out."""
    if len(shape) == len(counts):
        return shape == counts
    return tuple(size for size in shape if size != 1) == tuple(size for size in counts if size != 1)
