"""The blocks of a GGUF file as integers in groups, exactly.

A block whose scale is 1 and whose minimum is 0 means its integers. So its own are read and overwritten with
these, and the ``gguf`` package unpacks the rest. Types that are tables of integers (IQ4, MXFP4) have 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from gguf.quants import MXFP4, Q4_K
from numpy.typing import NDArray

from shoal.models.checkpoint.grouped import GroupedWeights, Grouping, fits_groups
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.gguf.weights import PIECE, block_size, read_blocks, to_floats

_Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Scales = tuple[_Floats, _Floats | None]
"""Scales and minima of blocks, each ``[blocks, groups of a block]``; without minima where all are 0."""

ONE = np.float16(1).tobytes()
ZERO = np.float16(0).tobytes()


def _half(blocks: Bytes, at: int) -> _Floats:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _scale(blocks: Bytes) -> Scales:
    return _half(blocks, 0), None


def _scale_and_minimum(blocks: Bytes) -> Scales:
    return _half(blocks, 0), _half(blocks, 2)


def _q2_k(blocks: Bytes) -> Scales:
    both = blocks[:, :16]
    return _half(blocks, 80) * (both & 15), -(_half(blocks, 82) * (both >> 4))


def _q3_k(blocks: Bytes) -> Scales:
    packed = blocks[:, 96:108]
    low = np.concatenate((packed[:, :8] & 15, packed[:, :8] >> 4), 1)
    high = np.concatenate([(packed[:, 8:] >> shift) & 3 for shift in (0, 2, 4, 6)], 1)
    return _half(blocks, 108) * _minus_32((low | high << 4).astype(np.uint8)), None


def _q4_k(blocks: Bytes) -> Scales:
    scales, minima = Q4_K.get_scale_min(np.ascontiguousarray(blocks[:, 4:16]))
    return _half(blocks, 0) * scales, -(_half(blocks, 2) * minima)


def _q6_k(blocks: Bytes) -> Scales:
    return _half(blocks, 208) * np.ascontiguousarray(blocks[:, 192:208]).view(np.int8), None


def _iq4_xs(blocks: Bytes) -> Scales:
    whole = np.ascontiguousarray(blocks[:, 2:4]).view(np.uint16)
    high = (whole >> np.arange(0, 16, 2, dtype=np.uint16) & 3).astype(np.uint8)
    low = np.stack((blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4), 2).reshape(len(blocks), 8)
    return _half(blocks, 0) * _minus_32((low | high << 4).astype(np.uint8)), None


def _mxfp4(blocks: Bytes) -> Scales:
    return MXFP4.e8m0_to_fp32_half(blocks[:, :1]), None


def _minus_32(values: Bytes) -> _Floats:
    """Signed scales of 6 bits."""
    return values.astype(np.float32) - 32


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """How the blocks of a type become groups."""

    grouping: Grouping
    scales: Callable[[Bytes], Scales]
    ones: Mapping[int, bytes]
    """What to write where, so that each scale of a block is 1 and each minimum 0."""
    zero: int = 0
    """The value that means 0."""


FOUR = Grouping(4, 32, minima=False, halves=True)
FOUR_MINIMA = Grouping(4, 32, minima=True, halves=True)
EIGHT = Grouping(8, 32, minima=False, halves=True)
EIGHT_MINIMA = Grouping(8, 32, minima=True, halves=True)
# The scales of these are products of two numbers.
FOUR_K = Grouping(4, 32, minima=True, halves=False)
FOUR_FINE = Grouping(4, 16, minima=False, halves=False)
FOUR_FINE_MINIMA = Grouping(4, 16, minima=True, halves=False)
EIGHT_K = Grouping(8, 32, minima=True, halves=False)
EIGHT_WIDE = Grouping(8, 32, minima=False, halves=False)
EIGHT_FINE = Grouping(8, 16, minima=False, halves=False)
K_ONES = {0: ONE + ZERO, 4: bytes([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1])}
"""Of Q4_K and Q5_K; see ``Q4_K.get_scale_min`` of the gguf package."""

LAYOUTS: Mapping[str, BlockLayout] = {
    "Q4_0": BlockLayout(FOUR, _scale, {0: ONE}, zero=8),
    "Q4_1": BlockLayout(FOUR_MINIMA, _scale_and_minimum, {0: ONE + ZERO}),
    "Q5_0": BlockLayout(EIGHT, _scale, {0: ONE}),
    "Q5_1": BlockLayout(EIGHT_MINIMA, _scale_and_minimum, {0: ONE + ZERO}),
    "Q8_0": BlockLayout(EIGHT, _scale, {0: ONE}),
    "Q2_K": BlockLayout(FOUR_FINE_MINIMA, _q2_k, {0: b"\1" * 16, 80: ONE + ZERO}),
    "Q3_K": BlockLayout(FOUR_FINE, _q3_k, {96: b"\x11" * 8 + b"\xaa" * 4, 108: ONE}, zero=4),
    "Q4_K": BlockLayout(FOUR_K, _q4_k, K_ONES),
    "Q5_K": BlockLayout(EIGHT_K, _q4_k, K_ONES),
    "Q6_K": BlockLayout(EIGHT_FINE, _q6_k, {192: b"\1" * 16, 208: ONE}),
    "IQ4_NL": BlockLayout(EIGHT, _scale, {0: ONE}),
    "IQ4_XS": BlockLayout(EIGHT_WIDE, _iq4_xs, {0: ONE + b"\xaa" * 2 + b"\x11" * 4}),
    "MXFP4": BlockLayout(EIGHT_WIDE, _mxfp4, {0: b"\x80"}),
}
"""By GGUF's type. The others are no integers in groups, or need none."""


def gguf_grouping(entry: TensorEntry) -> Grouping | None:
    """How :func:`read_groups` gives a tensor of a GGUF file; ``None``: it is no matrix of those types."""
    layout = LAYOUTS.get(entry.dtype)
    if layout is None or len(entry.shape) != 2 or entry.less:
        return None
    return layout.grouping if fits_groups(entry.shape[1], layout.grouping.group) else None


def read_groups(entry: TensorEntry) -> GroupedWeights:
    """A matrix of a GGUF file, that has a :func:`gguf_grouping`.

    Raises:
        BadWeights: see :func:`shoal.models.gguf.weights.read_blocks`.
    """
    layout = LAYOUTS[entry.dtype]
    elements, size = block_size(entry.dtype)
    blocks = read_blocks(entry).reshape(-1, size)
    scales, minima = layout.scales(blocks)
    values = np.empty((len(blocks), elements), np.int8)
    step = max(PIECE // elements, 1)
    for at in range(0, len(blocks), step):
        piece = blocks[at : at + step]
        for first, ones in layout.ones.items():
            piece[:, first : first + len(ones)] = np.frombuffer(ones, np.uint8)
        integers = to_floats(piece.reshape(-1), entry).reshape(piece.shape[0], elements)
        values[at : at + step] = integers + layout.zero
    rows = entry.shape[0]
    return GroupedWeights(
        values.reshape(entry.shape),
        np.ascontiguousarray(scales.reshape(rows, -1)),
        None if minima is None else np.ascontiguousarray(minima.reshape(rows, -1)),
        layout.grouping.bits,
        layout.zero,
    )
