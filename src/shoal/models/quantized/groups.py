"""Published quantisations as integers in groups, exactly: where codes are integers and columns in order.

Tables of numbers (NF4, FP4), floats (FP8, MXFP4) and blocks that end within a row are no such groups, and
neither are GPTQ's columns that its order of activations has mixed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shoal.models.checkpoint.grouped import Bits, GroupedWeights, Grouping, fits_groups
from shoal.models.quantized.entry import QuantizedEntry
from shoal.models.quantized.reader import pieces, read_part, read_rows

MIDDLE = 128
"""Taken off codes of 8 bits without a sign, and off their zeros."""


def quantized_grouping(entry: QuantizedEntry) -> Grouping | None:
    """How :func:`read_quantized_groups` gives a weight; ``None`` where it does not.

    Raises:
        BadWeights: which column is of which group is stored, and cannot be read.
    """
    layout = entry.layout
    if layout.bits is None or entry.turned or len(entry.shape) != 2:
        return None
    cols = entry.shape[1]
    if not fits_groups(cols, layout.group):
        return None
    order = entry.parts.get("g_idx")
    if order is not None and not np.array_equal(read_part(order), np.arange(cols) // layout.group):
        return None
    halves = entry.parts["scales"].dtype == "F16" and not layout.has_zeros
    return Grouping(_bits(layout.bits), layout.group, layout.has_zeros, halves)


def read_quantized_groups(entry: QuantizedEntry) -> GroupedWeights:
    """The integers of a weight that has a :func:`quantized_grouping`.

    Raises:
        BadWeights: see :func:`shoal.models.quantized.reader.read_quantized`.
    """
    rows, cols = entry.shape
    groups = cols // entry.layout.group
    bits = _bits(entry.layout.bits or 0)
    values = np.empty((rows, cols), np.int8)
    scales = np.empty((rows, groups), np.float32)
    zeros = np.zeros((rows, groups), np.int16)
    for piece, found in zip(pieces(entry), read_rows(entry), strict=True):
        middle = MIDDLE if bits == 8 and found.codes.dtype == np.uint8 else 0
        values[piece] = found.codes.astype(np.int16) - middle
        scales[piece] = found.scales
        zeros[piece] = -middle if found.zeros is None else found.zeros.astype(np.int16) - middle
    zero = _common_zero(zeros, bits)
    return GroupedWeights(values, scales, None if zero is not None else -zeros * scales, bits, zero or 0)


def _bits(stored: int) -> Bits:
    return 4 if stored <= 4 else 8


def _common_zero(zeros: NDArray[np.int16], bits: Bits) -> int | None:
    """The zero of all groups, if they have one that groups can have without minima."""
    first = int(zeros[0, 0])
    return first if (bits == 4 or first == 0) and bool((zeros == first).all()) else None
