"""Linear layers on a device, with the weights in our formats: torch's packed products where it has them.

Which products a device has, and how it wants the weights for them, differs by device and by version of torch.
So each is tried once on a small matrix, and used only if it gives what the weights say. Where there is none,
a matrix is widened for each product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch.nn import functional

from shoal.executor.arrays import Array
from shoal.executor.kernels.c_kernels import Matrix, pack
from shoal.executor.kernels.torch_kernels import (
    INT32_MAX,
    quantise,
    tensor_of,
    untile_groups,
    untile_quads,
    untile_weights,
    widen,
)
from shoal.types import Format

FEW_ROWS = 16
"""Up to so many rows a product is bound by reading the weights."""
CLOSE = 0.02
"""Relative error that a packed product may have on the trial matrix: bfloat16's is a fifth of it."""
TRIAL_ROWS, TRIAL_COLS = 64, 512
LARGEST_INT = 127 * 256 + 127
"""What two 8-bit integers hold, the upper one times 256."""
BITS = {"grouped4": 4, "grouped8": 8}

PACKED_GROUPS = (32, 64, 128, 256)
"""Weights that may share a scale in torch's products of 4-bit weights."""

PackedProduct = Callable[[torch.Tensor], torch.Tensor]
PackInt4 = Callable[["GroupedMatrix"], PackedProduct]


class DeviceMatrix(Protocol):
    """The weights of a linear layer on a device."""

    rows: int
    """What goes out."""
    cols: int
    """What comes in."""
    device: torch.device
    bytes: int
    """What it takes in the device's memory."""

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        """``x @ weights.T + bias``, float32 ``[n, cols]`` to ``[n, rows]`` in float32 or bfloat16."""
        ...


@dataclass(frozen=True, slots=True)
class Products:
    """Which packed products a device has, and has shown to be right."""

    int8_weights: bool = False
    """``_weight_int8pack_mm``: for few rows."""
    integers: bool = False
    """``_int_mm``: for many rows."""
    int4_weights: PackInt4 | None = None
    """Packs 4-bit weights for ``_weight_int4pack_mm`` or the CPU's own."""


def compute_dtype(format: Format) -> torch.dtype:
    """In what the rows that enter a product are."""
    return torch.float32 if format == "fp32" else torch.bfloat16


def place_matrix(matrix: Matrix, device: torch.device, products: Products) -> DeviceMatrix:
    """Bring a matrix to ``device``."""
    bias = None if matrix.bias is None else _placed(matrix.bias, device)
    if matrix.scales is None:
        return WideMatrix(_placed(matrix.weights, device), bias)
    if matrix.layout == "w8a8":
        rows = untile_quads(_placed(matrix.weights, torch.device("cpu")))[: matrix.rows, : matrix.cols]
        scales = _placed(matrix.scales.reshape(-1)[: matrix.rows], device)
        return W8A8Matrix(rows.contiguous().to(device), scales, bias, products)
    weights = _placed(matrix.weights, device)
    if matrix.layout == "int8":
        return Int8Matrix(weights, _placed(matrix.scales, device), bias, products)
    grouped = GroupedMatrix(
        weights,
        _untiled(matrix.scales, matrix.rows, device),
        None if matrix.minima is None else _untiled(matrix.minima, matrix.rows, device),
        bias,
        cols=matrix.cols,
        bits=BITS[matrix.layout],
        zero=matrix.zero,
    )
    return _place_packed(grouped, bias, products)


def _untiled(tiles: Array, rows: int, device: torch.device) -> torch.Tensor:
    """Scales or minima, ``[rows, cols / group]``."""
    return untile_groups(tensor_of(tiles if tiles.flags.writeable else tiles.copy()))[:rows].to(device)


class WideMatrix:
    """Weights as numbers of their own, ``[rows, cols]``."""

    def __init__(self, weights: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.rows, self.cols = weights.shape
        self.device = weights.device
        self.bytes = _bytes(weights, bias)
        self._weights = weights
        self._bias = bias

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return _plus(functional.linear(x.to(self._weights.dtype), self._weights), self._bias)


class _ScaledRows:
    """Weights int8 ``[rows, cols]``, with a scale for each row."""

    def __init__(
        self, weights: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, products: Products
    ) -> None:
        self.rows, self.cols = weights.shape
        self.device = weights.device
        self.bytes = _bytes(weights, scales, bias)
        self._weights = weights
        self._scales = scales
        self._bias = bias
        self._products = products
        # What CUDA's product of integers asks for; others take any shape.
        self._whole = self.rows % 8 == 0 and self.cols % 8 == 0


class Int8Matrix(_ScaledRows):
    """Such weights, for rows that are rounded to 16 bits or not at all."""

    def __init__(
        self, weights: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, products: Products
    ) -> None:
        super().__init__(weights, scales, bias, products)
        self._ones = torch.ones_like(scales, dtype=torch.bfloat16)  # the scales are applied in float32

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) <= FEW_ROWS and self._products.int8_weights:
            sums = torch._weight_int8pack_mm(_packed_rows(x), self._weights, self._ones)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        elif len(x) > FEW_ROWS and self._products.integers and self._whole:
            return _plus(self._from_integers(x), self._bias)
        else:
            sums = x.bfloat16() @ self._weights.bfloat16().T
        return _plus(sums * self._scales, self._bias)

    def _from_integers(self, x: torch.Tensor) -> torch.Tensor:
        """Rows as integers of 15 bits, as the C kernels have them: exact but for their rounding."""
        limit = float(min(INT32_MAX // (127 * self.cols), LARGEST_INT))
        largest = x.abs().amax(1, keepdim=True)
        to_int = torch.where(largest > 0, limit / largest, 0.0)
        whole = (x * to_int).round().to(torch.int32)
        low = ((whole + 128) & 255) - 128
        high = (whole - low) >> 8
        turned = self._weights.T
        sums = torch._int_mm(low.to(torch.int8), turned)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        sums = sums + (torch._int_mm(high.to(torch.int8), turned) << 8)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return sums.float() * (self._scales * (largest / limit))


class W8A8Matrix(_ScaledRows):
    """Such weights, for rows that are rounded to 8 bits too."""

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        whole, x_scales = quantise(x.float(), "w8a8", self.cols)
        if len(x) > FEW_ROWS and self._products.integers and self._whole:
            sums = torch._int_mm(whole.to(torch.int8), self._weights.T).float()  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        else:
            sums = (whole.bfloat16() @ self._weights.bfloat16().T).float()  # bfloat16 holds 8 bits exactly
        return _plus(sums * (self._scales * x_scales), self._bias)


class GroupedMatrix:
    """Weights in groups, widened for each product; see :class:`Matrix`."""

    def __init__(
        self,
        weights: torch.Tensor,
        scales: torch.Tensor,
        minima: torch.Tensor | None,
        bias: torch.Tensor | None,
        *,
        cols: int,
        bits: int,
        zero: int,
    ) -> None:
        """``weights`` are tiles; scales and minima are ``[rows, cols / group]``."""
        self.rows, self.cols = len(scales), cols
        self.device = weights.device
        self.bytes = _bytes(weights, scales, minima, bias)
        self.bits = bits
        self.scales = scales
        self._weights = weights
        self._minima = minima
        self._bias = bias
        self._zero = zero

    @property
    def group(self) -> int:
        """Weights of a row that share a scale."""
        return self.cols // self.scales.shape[1]

    def integers(self) -> torch.Tensor:
        """The weights before they are scaled, ``[rows, cols]``."""
        return untile_weights(self._weights, self.bits).narrow(0, 0, self.rows)

    def minima_at(self, value: int) -> torch.Tensor:
        """What the integer ``value`` means in each group, float32 ``[rows, cols / group]``."""
        found = self.scales.float() * (value - self._zero)
        return found if self._minima is None else found + self._minima.float()

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        values = self.integers().view(self.rows, -1, self.group).float()
        wide = torch.addcmul(self.minima_at(0).unsqueeze(2), values, self.scales.float().unsqueeze(2))
        return _plus(functional.linear(x.bfloat16(), wide.bfloat16().view(self.rows, -1)), self._bias)


class PackedInt4Matrix:
    """Weights as a device's own product of 4-bit weights wants them."""

    def __init__(self, product: PackedProduct, grouped: GroupedMatrix, bias: torch.Tensor | None) -> None:
        """``grouped`` is the same in our own layout, of which only the size is kept."""
        self.rows, self.cols, self.device = grouped.rows, grouped.cols, grouped.device
        scales = 4 * grouped.scales.numel()  # 16 bits each for scale and minimum
        self.bytes = grouped.rows * grouped.cols // 2 + scales + _bytes(bias)
        self._product = product
        self._bias = bias

    def multiply(self, x: torch.Tensor) -> torch.Tensor:
        return _plus(self._product(_packed_rows(x)), self._bias)


def weights_of(matrix: DeviceMatrix) -> torch.Tensor:
    """A matrix's weights as they multiply, float32 ``[rows, cols]``; it must have no bias."""
    return matrix.multiply(torch.eye(matrix.cols, device=matrix.device)).float().T


def _place_packed(grouped: GroupedMatrix, bias: torch.Tensor | None, products: Products) -> DeviceMatrix:
    if products.int4_weights is None or grouped.bits != 4 or grouped.group not in PACKED_GROUPS:
        return grouped
    try:
        product = products.int4_weights(grouped)
    except (RuntimeError, NotImplementedError):  # not every shape fits a device's tiles
        return grouped
    return PackedInt4Matrix(product, grouped, bias)


def _pack_for_cpu(grouped: GroupedMatrix) -> PackedProduct:
    packed = torch._convert_weight_to_int4pack_for_cpu(grouped.integers().to(torch.int32), 1)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    group, both = grouped.group, _scales_and_minima(grouped)
    return lambda x: torch._weight_int4pack_mm_for_cpu(x, packed, group, both)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _pack_for_tiles(grouped: GroupedMatrix) -> PackedProduct:
    """As CUDA has it: two weights in a byte, the first above, in tiles of 128 columns."""
    values = grouped.integers()
    packed = torch._convert_weight_to_int4pack(values[:, ::2] << 4 | values[:, 1::2], 8)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
    group, both = grouped.group, _scales_and_minima(grouped)
    return lambda x: torch._weight_int4pack_mm(x, packed, group, both)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def _scales_and_minima(grouped: GroupedMatrix) -> torch.Tensor:
    """bfloat16 ``[cols / group, rows, 2]``; the minima are what 8, in the middle of the 16 values, means."""
    return torch.stack((grouped.scales.float().T, grouped.minima_at(8).T), 2).bfloat16().contiguous()


@functools.cache
def find_products(device: torch.device) -> Products:
    """Try each product on a small matrix."""
    generator = np.random.default_rng(0)
    weights = generator.standard_normal((TRIAL_ROWS, TRIAL_COLS), np.float32)
    int8, int4 = pack(weights, "int8"), pack(weights, "int4")
    few, many = (
        torch.from_numpy(generator.standard_normal((n, TRIAL_COLS), np.float32)) for n in (1, 2 * FEW_ROWS)
    )

    def right(matrix: Matrix, products: Products, *rows: torch.Tensor) -> bool:
        try:
            placed = place_matrix(matrix, device, products)
            if products.int4_weights and not isinstance(placed, PackedInt4Matrix):
                return False
            found = [placed.multiply(x.to(device)).float().cpu() for x in rows]
        except (RuntimeError, NotImplementedError, AttributeError):  # the device has no such product
            return False
        return all(_close(y, x @ widen(matrix, slice(None)).T) for x, y in zip(rows, found, strict=True))

    int8_weights = right(int8, Products(int8_weights=True), few)
    integers = right(int8, Products(integers=True), many)
    packers = (_pack_for_cpu, _pack_for_tiles)
    int4_weights = (pack for pack in packers if right(int4, Products(int4_weights=pack), few, many))
    return Products(int8_weights, integers, next(int4_weights, None))


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= CLOSE * expected.norm())


def _placed(array: Array, device: torch.device) -> torch.Tensor:
    """An array's numbers on a device. Of a file's pages, which may not be written, there is a copy."""
    return tensor_of(array if array.flags.writeable else array.copy()).to(device)


def _packed_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows as the packed products take them: side by side."""
    return x.bfloat16().contiguous()


def _plus(out: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return out if bias is None else out + bias


def _bytes(*tensors: torch.Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
