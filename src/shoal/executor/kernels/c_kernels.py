"""Our C kernels, seen from Python: matrices in their layouts, and a team of threads.

The libraries are compiled when Shoal is installed (``hatch_build.py``), one for each level of the CPU; the
best that this machine can run is loaded on first use. Where there is none (no compiler at install time),
:mod:`shoal.executor.kernels.torch_kernels` computes the same with torch, on the model's own modules.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Literal

import numpy as np

from shoal.errors import OutOfResources
from shoal.executor.arrays import ALIGNMENT, Array, Floats, address, empty, narrow, widen
from shoal.executor.kernels.built import BASIC, NATIVE, kernels_built
from shoal.executor.kernels.onednn import product
from shoal.executor.kernels.structs import (
    PRODUCT,
    KvStruct,
    LinearStruct,
    SequenceStruct,
    SpanStruct,
    TapeStruct,
)
from shoal.executor.kernels.tiles import QUAD, TILE, quads_of, tile_groups, tile_quads, tile_weights, tiles_of
from shoal.types import Format

GROUP = 32
"""Weights of int4 that share a scale."""
INT4_ZERO = 8
"""The integer that means 0 in int4."""
MatrixLayout = Literal["fp32", "bf16", "int8", "grouped4", "grouped8", "w8a8"]
"""How one matrix is held. int4 is grouped4; a published model's matrices may each be held in another way."""
NUMBER: dict[MatrixLayout, int] = {
    "fp32": 0,
    "bf16": 1,
    "int8": 2,
    "grouped4": 3,
    "grouped8": 4,
    "w8a8": 5,
}

log = logging.getLogger(__name__)


def _declare(library: ctypes.CDLL) -> ctypes.CDLL:
    library.team_new.restype = c_void_p
    library.team_new.argtypes = [c_int]
    library.team_free.argtypes = [c_void_p]
    library.team_set_product.argtypes = [c_void_p, PRODUCT]
    library.team_threads.argtypes = [c_void_p]
    library.team_limit.argtypes = [c_void_p, c_int32]
    library.team_limit.restype = c_int32
    library.span_step.argtypes = [c_void_p, POINTER(SpanStruct), c_int, c_int, c_void_p, c_int, c_void_p]
    library.taped_step.argtypes = [
        c_void_p,
        POINTER(SpanStruct),
        c_int,
        POINTER(SequenceStruct),
        c_void_p,
        POINTER(TapeStruct),
    ]
    library.apply_linear.argtypes = [c_void_p, POINTER(LinearStruct), c_void_p, c_int, c_void_p]
    library.rms_norm.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_float, c_void_p]
    library.kv_layer_bytes.argtypes = [POINTER(KvStruct)]
    library.kv_layer_bytes.restype = c_int64
    library.activation_limit.argtypes = [c_int32, c_int32]
    library.pack_int8.argtypes = [c_void_p, c_int64, c_int64, c_void_p, c_void_p]
    library.pack_int4.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_void_p, c_void_p]
    library.encode_rows.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_void_p]
    library.decode_rows.argtypes = [c_void_p, c_int64, c_int64, c_int32, c_void_p]
    library.decode_steps.argtypes = [c_void_p, c_int64, c_char_p, c_int64]
    library.decode_steps.restype = c_int
    return library


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels for this CPU; ``None`` where they were not built."""
    if not kernels_built():
        log.warning("the C kernels are not built: computing with torch alone, which is slower")
        return None
    level = ctypes.CDLL(str(BASIC)).cpu_level()
    best = NATIVE / f"kernels-v{level}.so"
    return _declare(ctypes.CDLL(str(best if best.exists() else BASIC)))


def _address(array: Array | None) -> int | None:
    return None if array is None else address(array)


@dataclass(frozen=True, slots=True)
class Matrix:
    """The weights of a linear layer, ``[rows, cols]``, in one of the layouts; in memory or a file's pages.

    In groups a weight is ``scale * (integer - zero) + minimum``.
    """

    layout: MatrixLayout
    rows: int
    """What goes out."""
    cols: int
    """What comes in."""
    weights: Array
    """fp32: float32, bf16: uint16, int8: int8, each ``[rows, cols]``; in groups: uint8 tiles, w8a8: int8
    tiles, see :mod:`shoal.executor.kernels.tiles`."""
    scales: Array | None
    """int8: float32 ``[rows]``; w8a8: float32 ``[tiles, 16]``; in groups: float32 or float16
    ``[tiles, cols / group, 16]``."""
    bias: Floats | None = None
    """float32 ``[rows]``."""
    minima: Array | None = None
    """As the scales; ``None``: they are all 0."""
    zero: int = 0

    @property
    def group(self) -> int:
        """Weights of a row that share a scale; 0 where the layout has no groups."""
        return 0 if self.scales is None or self.scales.ndim < 3 else self.cols // self.scales.shape[1]

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        held = (self.weights, self.scales, self.bias, self.minima)
        return sum(array.nbytes for array in held if array is not None)

    def struct(self) -> LinearStruct:
        """What the kernels read; valid as long as this matrix lives."""
        return LinearStruct(
            self.rows,
            self.cols,
            NUMBER[self.layout],
            self.group,
            _address(self.weights),
            _address(self.scales),
            _address(self.bias),
            _address(self.minima),
            self.zero,
            self.scales is not None and self.scales.dtype == np.float16,
        )


def fits(format: Format, cols: int) -> bool:
    """Whether a matrix with ``cols`` columns can be held in ``format``: int4 needs whole groups."""
    return format != "int4" or cols % GROUP == 0


def pack(weights: Array, format: Format, bias: Array | None = None) -> Matrix:
    """``weights`` ``[rows, cols]`` of any floating dtype in ``format``; int8 where ``format`` does not fit.

    What was published with a fraction is bf16 in ``published``; integers come in through
    :func:`shoal.executor.kernels.groups.pack_groups`.

    int8 is symmetric with a scale for each row, and so is w8a8, which differs in what its weights meet; int4
    has one for each 32 weights of a row, from the weight of the largest magnitude, in 16 bits, as Q4_0.

    Args:
        weights: uint16 are the bits of bfloat16.
    """
    rows, cols = weights.shape
    bias = None if bias is None else aligned(widen(bias))
    if format == "fp32":
        return Matrix(format, rows, cols, aligned(widen(weights)), None, bias)
    if format in ("bf16", "published"):
        return Matrix("bf16", rows, cols, aligned(narrow(weights)), None, bias)
    if format == "int4" and fits(format, cols):
        return Matrix("grouped4", rows, cols, *_pack_int4(weights), bias, zero=INT4_ZERO)
    if format == "w8a8":
        return Matrix(format, rows, cols, *_pack_w8a8(weights), bias)
    return Matrix("int8", rows, cols, *_pack_int8(weights), bias)


def aligned(array: Array) -> Array:
    """The same numbers side by side and aligned; the array itself when they are so already."""
    if array.flags.c_contiguous and address(array) % ALIGNMENT == 0:
        return array
    copy = empty(array.shape, array.dtype)
    copy[...] = array
    return copy


ROWS_AT_ONCE = 1024
"""Rows widened to float32 at a time while packing, whole tiles: the peak stays near the packed size."""


def _pack_int8(weights: Array) -> tuple[Array, Floats]:
    rows, cols = weights.shape
    packed, scales = empty((rows, cols), np.int8), empty((rows,))
    for at in range(0, rows, ROWS_AT_ONCE):
        wide = np.ascontiguousarray(widen(weights[at : at + ROWS_AT_ONCE]))
        part = slice(at, at + len(wide))
        if (native := library()) is not None:
            native.pack_int8(address(wide), len(wide), cols, address(packed[part]), address(scales[part]))
        else:
            largest = np.abs(wide).max(1)
            scales[part] = largest / np.float32(127)
            packed[part] = np.rint(wide * _quotient(127.0, largest)[:, None])
    return packed, scales


def _pack_w8a8(weights: Array) -> tuple[Array, Floats]:
    rows, cols = weights.shape
    tiles = empty((tiles_of(rows), quads_of(cols), TILE, QUAD), np.int8)
    scales = np.zeros((len(tiles), TILE), np.float32)
    for at in range(0, rows, ROWS_AT_ONCE):
        packed, factors = _pack_int8(weights[at : at + ROWS_AT_ONCE])
        tiles[at // TILE : tiles_of(at + len(packed))] = tile_quads(packed)
        scales.reshape(-1)[at : at + len(packed)] = factors
    return tiles, aligned(scales)


def _pack_int4(weights: Array) -> tuple[Array, Array]:
    rows, cols = weights.shape
    parts = [slice(at, min(at + ROWS_AT_ONCE, rows)) for at in range(0, rows, ROWS_AT_ONCE)]
    largest = max(float(np.abs(widen(weights[part])).max(initial=0)) for part in parts) / 8
    # Where the largest scale is in float16's range, small groups lose less by it than by their 4 bits.
    halves = 2.0**-14 <= largest <= float(np.finfo(np.float16).max)
    tiles = empty((tiles_of(rows), cols // GROUP, TILE * GROUP // 2), np.uint8)
    scales = empty((tiles_of(rows), cols // GROUP, TILE), np.float16 if halves else np.float32)
    for part in parts:
        wide = np.ascontiguousarray(widen(weights[part]))
        values, factors = empty(wide.shape, np.uint8), empty((len(wide), cols // GROUP))
        if (native := library()) is not None:
            native.pack_int4(address(wide), len(wide), cols, halves, address(values), address(factors))
        else:
            groups = wide.reshape(len(wide), -1, GROUP)
            top = np.take_along_axis(groups, np.abs(groups).argmax(2, keepdims=True), 2)
            factor = top / np.float32(-8)
            factor = factor.astype(np.float16).astype(np.float32) if halves else factor
            factors[...] = factor[..., 0]
            quantised = np.clip(np.rint(groups * _quotient(1.0, factor)) + 8, 0, 15)
            values[...] = quantised.reshape(len(wide), cols)
        whole = slice(part.start // TILE, tiles_of(part.stop))
        tiles[whole], scales[whole] = tile_weights(values, 4), tile_groups(factors)
    return tiles, scales


def _quotient(above: float, below: Floats) -> Floats:
    """``above / below`` in float32, and 0 where ``below`` is 0."""
    return np.divide(np.float32(above), below, out=np.zeros_like(below), where=below != 0)


class ThreadTeam:
    """Threads that compute together, with their working memory. For one caller at a time.

    Args:
        onednn: give large products of bf16 to oneDNN; by default where the CPU multiplies bf16 in hardware
            (AVX512-BF16), since oneDNN is then ahead of our kernel from a few dozen rows on.
    """

    def __init__(self, threads: int, *, onednn: bool | None = None) -> None:
        native = library()
        if native is None:
            raise OutOfResources(
                "the C kernels are not built", next_command="pip install --force-reinstall shoal"
            )
        self.library = native
        """The kernels for this CPU."""
        self._team = native.team_new(threads)
        if not self._team:
            raise OutOfResources("no memory for the kernels' threads")
        self.threads = int(native.team_threads(self._team))
        if native.cpu_multiplies_bf16() if onednn is None else onednn:
            native.team_set_product(self._team, product)

    def __del__(self) -> None:
        if getattr(self, "_team", None):
            self.library.team_free(self._team)

    @property
    def handle(self) -> int:
        """What the kernels know it by."""
        return self._team

    def limit(self, extras: int) -> int:
        """Use only those instructions beyond the CPU's level that are among ``extras`` (native/cpu.h).

        Returns those that are left. It changes how fast the kernels are, and no bit.
        """
        return int(self.library.team_limit(self._team, extras))

    def linear(self, matrix: Matrix, x: Floats) -> Floats:
        """``x @ weights.T + bias``: float32 ``[n, cols]`` gives ``[n, rows]``.

        In int8, w8a8 and int4 a row's result does not depend on the rows beside it, bit for bit.

        Raises:
            OutOfResources: memory is short.
        """
        x = np.ascontiguousarray(x)
        out = empty((len(x), matrix.rows))
        if len(x):
            struct = matrix.struct()
            self._check(
                self.library.apply_linear(self._team, byref(struct), address(x), len(x), address(out))
            )
        return out

    def run_span(
        self,
        span: SpanStruct,
        layers: range,
        sequences: ctypes.Array[SequenceStruct],
        hidden: Floats,
    ) -> None:
        """Run blocks ``layers`` of a span on ``hidden``, float32 ``[n, width]``, in place.

        Raises:
            OutOfResources: memory is short; ``hidden`` is as it was.
        """
        self._check(
            self.library.span_step(
                self._team,
                byref(span),
                layers.start,
                layers.stop,
                ctypes.addressof(sequences),
                len(sequences),
                address(hidden),
            )
        )

    def run_taped(
        self, span: SpanStruct, layer: int, sequence: SequenceStruct, hidden: Floats, tape: TapeStruct
    ) -> None:
        """Run one block on one session's ``hidden``, float32 ``[n, width]``, in place, and write its integer
        products on ``tape`` or take them from it. Its weights are int8 or w8a8; the bits are those of
        :meth:`run_span`.

        Raises:
            OutOfResources: memory is short; ``hidden`` is as it was.
        """
        self._check(
            self.library.taped_step(
                self._team, byref(span), layer, byref(sequence), address(hidden), byref(tape)
            )
        )

    def rms_norm(self, x: Floats, weight: Floats, epsilon: float) -> Floats:
        """Root mean square norm of each row of ``x``, float32 ``[n, width]`` (Zhang and Sennrich, 2019)."""
        x = np.ascontiguousarray(x)
        out = empty(x.shape)
        self.library.rms_norm(address(x), *x.shape, address(weight), epsilon, address(out))
        return out

    def _check(self, failed: int) -> None:
        if failed:
            raise OutOfResources(
                "no memory for the working set of a forward", check="send fewer tokens in one step"
            )
