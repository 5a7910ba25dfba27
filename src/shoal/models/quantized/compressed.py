"""compressed-tensors: integers packed in words, or integers and 8-bit floats as they are, with their scales.

As its compressors write them (``compressors/pack_quantized``, ``naive_quantized``). Packed: ``weight_packed``
has the codes of a weight ``[rows, cols]`` as int32 ``[rows, cols * bits / 32]``, each plus half of its range,
``weight_shape`` is ``[rows, cols]``, and zeros are packed down the rows. Naive: ``weight`` are the codes. In
both ``weight_scale`` is one for all, or for each row, group of a row, or block. Which modules have which
scheme the config says by patterns: those are not followed, the tensors show it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.codes import FLOAT8, unpack
from shoal.models.quantized.entry import (
    QuantizedEntry,
    QuantizedRows,
    RowIndex,
    RowReader,
    StoredArrays,
    bad,
    missing,
    quantized_entry,
)
from shoal.models.quantized.reader import read_part
from shoal.models.quantized.scaled import ScaledLayout, ScaleGrid, scale_grid
from shoal.models.quantized.settings import SchemeSettings

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
OTHERS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")
"""Of activations, which are not quantised here."""
STRATEGIES = ("tensor", "channel", "group", "block")
PACKED, NAIVE = "weight_packed", "weight"
PARTS = {"zeros": ".weight_zero_point", "g_idx": ".weight_g_idx", "shape": ".weight_shape"}


@dataclass(frozen=True, slots=True)
class Scheme:
    """How one group of modules is quantised."""

    floats: bool
    bits: int
    symmetric: bool
    block: tuple[int, int]
    """Rows and columns that share a scale; 0: all of them."""


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How codes of a few bits are packed."""

    bits: int
    grid: ScaleGrid
    has_zeros: bool

    @property
    def group(self) -> int:
        return self.grid.block[1]

    def open(self, parts: StoredArrays) -> RowReader:
        words = parts["codes"]
        down, across = self.grid.shape
        scales = parts["scales"].reshape(down, across)
        if "zeros" in parts:
            zeros = unpack(parts["zeros"].reshape(-1, across).T, self.bits, down).T
        else:
            zeros = np.full((down, across), 1 << (self.bits - 1), np.uint8)
        order = self.grid.order(parts.get("g_idx"))

        def read(rows: RowIndex) -> QuantizedRows:
            at = self.grid.blocks_of(np.arange(self.grid.rows)[rows])
            codes = unpack(np.asarray(words[rows]), self.bits, self.grid.cols)
            return QuantizedRows(codes, scales[at], zeros[at], order)

        return read


def compressed_entries(
    settings: SchemeSettings, tensors: Mapping[str, TensorEntry]
) -> Iterator[QuantizedEntry]:
    """The weights of a checkpoint that compressed-tensors wrote.

    Raises:
        BadWeights: a tensor is missing, or of a shape that the others or the settings contradict.
        UnsupportedModel: it is in another of its formats, or rotated, or sparse.
    """
    schemes = _schemes(settings)
    for name, codes in tensors.items():
        module, _, last = name.rpartition(".")
        naive = last == NAIVE and (codes.dtype == "I8" or codes.dtype in FLOAT8)
        if last != PACKED and not naive:
            continue
        scales = tensors.get(f"{module}.weight_scale")
        if scales is None:
            raise missing(settings.folder, f"{module}.weight_scale", name)
        parts = {"codes": codes, "scales": scales}
        for part, suffix in PARTS.items():
            if (entry := tensors.get(module + suffix)) is not None:
                parts[part] = entry
        parts |= {other: tensors[f"{module}.{other}"] for other in OTHERS if f"{module}.{other}" in tensors}
        yield _naive(settings, schemes, name, parts) if naive else _packed(settings, schemes, module, parts)


def _packed(
    settings: SchemeSettings, schemes: list[Scheme], module: str, parts: Mapping[str, TensorEntry]
) -> QuantizedEntry:
    codes = parts["codes"]
    if "shape" not in parts:
        raise missing(settings.folder, f"{module}.weight_shape", codes.name)
    rows, cols = _shape(parts["shape"])
    known = [scheme for scheme in schemes if not scheme.floats]
    fitting = [scheme for scheme in known if codes.shape == (rows, -(-cols * scheme.bits // 32))]
    if codes.dtype != "I32" or not fitting:
        bits = " or ".join(sorted({str(scheme.bits) for scheme in known})) or "no"
        raise bad(codes, f"is {codes.dtype} {list(codes.shape)}: {rows} x {cols} in {bits} bits is another")
    grid, scheme = _grid(settings, fitting, parts, (rows, cols))
    if "zeros" in parts:
        zeros, (down, across) = parts["zeros"], grid.shape
        if zeros.dtype != "I32" or zeros.shape != (-(-down * scheme.bits // 32), across):
            raise bad(zeros, f"is {zeros.dtype} {list(zeros.shape)}, and the scales are {[down, across]}")
    layout = PackedLayout(scheme.bits, grid, "zeros" in parts)
    return quantized_entry(f"{module}.weight", f"INT{scheme.bits}", (rows, cols), parts, layout)


def _naive(
    settings: SchemeSettings, schemes: list[Scheme], name: str, parts: Mapping[str, TensorEntry]
) -> QuantizedEntry:
    codes = parts["codes"]
    floats = codes.dtype in FLOAT8
    fitting = [scheme for scheme in schemes if scheme.floats == floats]
    if not fitting:
        raise bad(codes, f"is {codes.dtype}, and no group of the config's (config_groups) is")
    grid, _ = _grid(settings, fitting, parts, codes.shape)
    if "zeros" in parts:
        zeros, scales = parts["zeros"], parts["scales"]
        if floats or zeros.dtype != "I8" or zeros.shape != scales.shape:
            raise bad(zeros, f"is {zeros.dtype} {list(zeros.shape)}, and the scales are {list(scales.shape)}")
    layout = ScaledLayout(grid, codes.dtype if floats else "", has_zeros="zeros" in parts)
    return quantized_entry(name, "FP8" if floats else "INT8", codes.shape, parts, layout)


def _grid(
    settings: SchemeSettings,
    schemes: list[Scheme],
    parts: Mapping[str, TensorEntry],
    shape: tuple[int, ...],
) -> tuple[ScaleGrid, Scheme]:
    """How the scales lie, and the scheme that says so."""
    codes = parts["codes"]
    grid = scale_grid(codes, parts["scales"], shape, tuple(scheme.block for scheme in schemes))
    if len(shape) != 2:
        raise bad(codes, f"has the shape {list(shape)}, and should be a matrix")
    found = [s for s in schemes if (s.block[0] or shape[0], s.block[1] or shape[1]) == grid.block]
    if "zeros" not in parts and not any(scheme.symmetric for scheme in found):
        name = codes.name.rpartition(".")[0]
        raise missing(settings.folder, f"{name}.weight_zero_point", codes.name)
    order = parts.get("g_idx")
    if order is not None and (order.dtype not in ("I32", "I64") or order.shape != (shape[1],)):
        raise bad(order, f"is {order.dtype} {list(order.shape)}, and there are {shape[1]} columns")
    return grid, found[0]


def _shape(entry: TensorEntry) -> tuple[int, int]:
    if entry.dtype not in ("I32", "I64") or entry.shape != (2,):
        raise bad(entry, f"is {entry.dtype} {list(entry.shape)}, and should be two whole numbers")
    rows, cols = (int(size) for size in read_part(entry))
    if not (0 < rows < 2**31 and 0 < cols < 2**31):
        raise bad(entry, f"says a shape of {[rows, cols]}")
    return rows, cols


def _schemes(settings: SchemeSettings) -> list[Scheme]:
    """What the config says of its groups of modules."""
    whole = settings.text("format", "")
    sparse = settings.values.get("sparsity_config")
    if isinstance(sparse, dict) and sparse.get("format", "dense") != "dense":
        raise settings.unsupported("and sparse", "those without sparsity_config are read")
    if settings.values.get("transform_config"):
        raise settings.unsupported("and rotated (transform_config)", "those without are read")
    found: list[Scheme] = []
    for group in settings.objects("config_groups").values():
        format = group.get("format") or whole
        if format not in FORMATS:
            raise settings.unsupported(
                f"in the format {str(format)[:40]!r}", f"{', '.join(FORMATS[:4])} are read"
            )
        weights = group.get("weights")
        if isinstance(weights, dict):
            found.append(_scheme(settings, weights))
    if not found:
        raise settings.wrong("config_groups", settings.values.get("config_groups"))
    return found


def _scheme(settings: SchemeSettings, weights: Mapping[str, Any]) -> Scheme:
    bits = settings.whole_number("num_bits", weights.get("num_bits", 8))
    kind, strategy = weights.get("type", "int"), weights.get("strategy")
    group, structure = weights.get("group_size"), weights.get("block_structure")
    if strategy is None:
        strategy = "tensor" if group is None else "channel" if group == -1 else "group"
    known = (kind == "int" and bits <= 8) or (kind == "float" and bits == 8)
    if strategy not in STRATEGIES or not known:
        what = f"by {str(strategy)[:20]} in {bits} bits of {str(kind)[:20]}"
        raise settings.unsupported(what, "integers of up to 8 bits and floats of 8 bits are read")
    block = (0, 0) if strategy == "tensor" else (1, 0)
    if strategy == "group":
        block = (1, settings.whole_number("group_size", group))
    elif strategy == "block":
        if isinstance(structure, str):  # as it was once written
            structure = [int(size) for size in structure.split("x") if size.isdecimal()]
        block = settings.pair("block_structure", structure)
    return Scheme(kind == "float", bits, weights.get("symmetric", True) is not False, block)
