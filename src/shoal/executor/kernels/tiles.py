"""Sixteen rows of weights interleaved, as the kernels read them (``native/grouped.c``, ``native/w8a8.c``).

Of weights in groups a tile holds pairs of neighbouring columns: of sixteen rows that of columns 0 and 1,
then of all of them that of columns 2 and 3, and so on, 32 columns after 32. With 4 bits two integers lie in
a byte: one of the first 16 columns in its lower half, and the one 16 columns further on in its upper one.
Scales and minima are ``[tiles, groups, 16]``. Behind the last row a tile is filled up with zeros, and
scales of 0.

Of w8a8 a tile holds quads of neighbouring columns: of sixteen rows that of columns 0 to 3, then of all of
them that of columns 4 to 7, and so on.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from shoal.executor.arrays import Array, empty
from shoal.models.checkpoint.grouped import CHUNK

TILE = 16
"""Rows that lie interleaved."""
QUAD = 4
"""Columns of a row that lie side by side in w8a8."""
STEP = 64
"""Columns of w8a8 come in multiples of so many, as AMX takes them; behind the last are zeros."""


def tiles_of(rows: int) -> int:
    """Tiles that hold so many rows."""
    return -(-rows // TILE)


def tile_weights(values: Array, bits: Literal[4, 8]) -> NDArray[np.uint8]:
    """Integers ``[rows, cols]`` as tiles, uint8 ``[tiles, cols / 32, bytes of a chunk]``.

    Args:
        values: of one byte each; with 4 bits from 0 to 15. ``cols`` is a multiple of 32.
    """
    rows, cols = values.shape
    tiles, chunks = tiles_of(rows), cols // CHUNK
    # A pair of neighbours moves as one: half as many elements to put elsewhere.
    pairs = np.ascontiguousarray(values).view(np.uint16).reshape(rows, chunks, 2, CHUNK // 4)
    made = empty((tiles, chunks, TILE * CHUNK * bits // 8), np.uint8)
    to = made.view(np.uint16).reshape(tiles, chunks, -1, CHUNK // 4, TILE)
    for half in range(2):
        turned = _in_tiles(pairs[:, :, half]).transpose(0, 2, 3, 1)
        if bits == 8 or half == 0:
            to[:, :, half] = turned
        else:
            to[:, :, 0] |= turned << 4
    return made


def quads_of(cols: int) -> int:
    """Quads of columns in a tile of w8a8."""
    return -(-cols // STEP) * STEP // QUAD


def tile_quads(values: Array) -> NDArray[np.int8]:
    """Integers of 8 bits ``[rows, cols]`` as tiles ``[tiles, quads, 16, 4]``."""
    rows, cols = values.shape
    whole = np.zeros((tiles_of(rows) * TILE, quads_of(cols) * QUAD), np.int8)
    whole[:rows, :cols] = values
    # A quad moves as one.
    turned = whole.view(np.uint32).reshape(-1, TILE, quads_of(cols)).transpose(0, 2, 1)
    made = empty((tiles_of(rows), quads_of(cols), TILE, QUAD), np.int8)
    made.view(np.uint32)[..., 0] = turned
    return made


def quads_by_row(tiles: Array, rows: int, cols: int) -> NDArray[np.int8]:
    """What :func:`tile_quads` was given, ``[rows, cols]``."""
    turned = np.ascontiguousarray(tiles).view(np.uint32)[..., 0].transpose(0, 2, 1)
    whole = np.ascontiguousarray(turned).view(np.int8).reshape(len(tiles) * TILE, -1)
    return np.ascontiguousarray(whole[:rows, :cols])


def tile_groups(scales: Array) -> Array:
    """Scales or minima ``[rows, groups]`` as ``[tiles, groups, 16]``."""
    made = empty((tiles_of(len(scales)), scales.shape[1], TILE), scales.dtype)
    np.copyto(made, _in_tiles(scales).transpose(0, 2, 1))
    return made


def _in_tiles(rows: Array) -> Array:
    """``[rows, …]`` as ``[tiles, 16, …]``, with zeros behind the last row."""
    missing = -len(rows) % TILE
    if missing:
        rows = np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])
    return rows.reshape(-1, TILE, *rows.shape[1:])
