"""bitsandbytes' tensors: int8 with a scale for each row, or codes of a table of 16 numbers (NF4, FP4).

As its ``Linear8bitLt`` and ``QuantState.as_dict`` write them. Eight bits: ``weight`` are the codes and
``SCB`` the largest weight of each row, for which 127 stands. Four bits: ``weight`` has two codes in a byte,
the upper first, of all rows one after another; ``weight.absmax`` is the scale of each block of them, itself
in eight bits where it is nested; ``weight.quant_map`` are the 16 numbers, ``weight.quant_state…`` is JSON.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.codes import nibbles
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
from shoal.models.quantized.scaled import ScaledLayout, scale_grid
from shoal.models.quantized.settings import SchemeSettings
from shoal.models.untrusted.bounded_json import parse

STATE = ".quant_state.bitsandbytes__"
MAX_STATE = 1 << 14
"""Bytes of a quantisation's state. Honest ones have 200."""
LARGEST = 127


@dataclass(frozen=True, slots=True)
class TableLayout:
    """How a matrix is stored of which each code stands for one of 16 numbers."""

    rows: int
    cols: int
    block: int
    """Weights that share a scale, of all rows one after another."""
    nested_block: int = 0
    """Scales that share one of their own; 0: they are float32."""
    nested_offset: float = 0.0
    bits: int | None = None
    has_zeros: bool = False

    @property
    def group(self) -> int:
        return self.block

    def open(self, parts: StoredArrays) -> RowReader:
        raw, table = parts["weight"].reshape(-1), parts["quant_map"]
        scales = self._scales(parts)
        aligned = self.cols % self.block == 0

        def read(rows: RowIndex) -> QuantizedRows:
            which = np.arange(self.rows)[rows]
            places = which[:, None] * self.cols + np.arange(self.cols)
            if self.cols % 2 == 0:
                codes = nibbles(raw.reshape(self.rows, -1)[rows], high_first=True)
            else:
                codes = (raw[places // 2] >> (4 * (1 - places % 2)).astype(np.uint8)) & 15
            of = places[:, :: self.block] if aligned else places
            return QuantizedRows(table[codes], scales[of // self.block])

        return read

    def _scales(self, parts: StoredArrays) -> NDArray[np.float32]:
        scales = parts["absmax"].reshape(-1)
        if not self.nested_block:
            return scales
        wide = parts["nested_quant_map"][scales]
        wide *= np.repeat(parts["nested_absmax"].reshape(-1), self.nested_block)[: len(scales)]
        return wide + np.float32(self.nested_offset)


def bitsandbytes_entries(
    settings: SchemeSettings, tensors: Mapping[str, TensorEntry]
) -> Iterator[QuantizedEntry]:
    """The weights of a checkpoint that bitsandbytes wrote.

    Raises:
        BadWeights: a tensor is missing, or of a shape that the others contradict.
        UnsupportedModel: its rows are in the order of one kind of GPU.
    """
    states = {name.partition(STATE)[0]: entry for name, entry in tensors.items() if STATE in name}
    for name, codes in tensors.items():
        module, _, last = name.rpartition(".")
        if last != "weight":
            continue
        turned = settings.turns(module)
        if (state := states.get(name)) is not None:
            yield _four_bits(settings, tensors, name, state, turned)
        elif codes.dtype == "I8":
            yield _eight_bits(settings, tensors, name, turned)


def _eight_bits(
    settings: SchemeSettings, tensors: Mapping[str, TensorEntry], name: str, turned: bool
) -> QuantizedEntry:
    codes, module = tensors[name], name.removesuffix("weight")
    scales = tensors.get(f"{module}SCB")
    if scales is None:
        raise missing(settings.folder, f"{module}SCB", name)
    parts = {"codes": codes, "scales": scales}
    if (order := tensors.get(f"{module}weight_format")) is not None:
        if order.size > 8 or read_part(order).any():
            raise settings.unsupported("in the order of a GPU's tiles", "rows in order are read")
        parts["weight_format"] = order
    layout = ScaledLayout(scale_grid(codes, scales, codes.shape, ((1, 0),)), divisor=LARGEST)
    shape = codes.shape[::-1] if turned else codes.shape
    return quantized_entry(name, "BNB8", shape, parts, layout, turned=turned)


def _four_bits(
    settings: SchemeSettings,
    tensors: Mapping[str, TensorEntry],
    name: str,
    state: TensorEntry,
    turned: bool,
) -> QuantizedEntry:
    said = _state(state)
    shape, block = _sizes(state, said.get("shape")), said.get("blocksize")
    nested = f"{name}.nested_absmax" in tensors
    names = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if nested else [])]
    parts = {"weight": replace(tensors[name], dtype="U8", shape=(tensors[name].size,))}
    for part in names:
        if f"{name}.{part}" not in tensors:
            raise missing(settings.folder, f"{name}.{part}", name)
        parts[part] = tensors[f"{name}.{part}"]
    parts["quant_state"] = state
    if len(shape) != 2 or type(block) is not int or not 0 < block <= 1 << 20:
        raise bad(state, f"says a shape of {list(shape)} and blocks of {str(block)[:20]}")
    rows, cols = shape
    layout = TableLayout(rows, cols, block)
    if nested:
        inner, offset = said.get("nested_blocksize"), said.get("nested_offset")
        if type(inner) is not int or not 0 < inner <= 1 << 20 or type(offset) not in (int, float):
            raise bad(state, f"says nested blocks of {str(inner)[:20]} and an offset of {str(offset)[:20]}")
        if not math.isfinite(cast(float, offset)):
            raise bad(state, f"says an offset of {offset}")
        layout = replace(layout, nested_block=inner, nested_offset=float(cast(float, offset)))
    _check_sizes(parts, layout)
    plain = (cols, rows) if turned else (rows, cols)
    return quantized_entry(name, state.name.partition(STATE)[2].upper(), plain, parts, layout, turned=turned)


def _check_sizes(parts: Mapping[str, TensorEntry], layout: TableLayout) -> None:
    """Each part has as many elements as the shape and the blocks make."""
    weights = layout.rows * layout.cols
    blocks = -(-weights // layout.block)
    wanted = {
        "weight": ("U8", -(-weights // 2)),
        "absmax": ("U8" if layout.nested_block else "F32", blocks),
        "quant_map": ("F32", 16),
    }
    if layout.nested_block:
        wanted["nested_absmax"] = ("F32", -(-blocks // layout.nested_block))
        wanted["nested_quant_map"] = ("F32", 256)
    for name, (dtype, count) in wanted.items():
        part = parts[name]
        if part.dtype != dtype or math.prod(part.shape) != count:
            raise bad(
                part,
                f"is {part.dtype} {list(part.shape)}, where {layout.rows} x {layout.cols} weights in blocks "
                f"of {layout.block} have {count} of {dtype}",
            )


def _state(entry: TensorEntry) -> dict[str, Any]:
    """What a quantisation's state says."""
    if entry.dtype != "U8" or entry.size > MAX_STATE:
        raise bad(entry, f"is {entry.dtype} of {entry.size} bytes, and should be a short text")
    try:
        said = parse(read_part(entry).tobytes(), values=100)
    except ValueError as error:
        raise bad(entry, f"is not valid JSON ({error})") from error
    if not isinstance(said, dict):
        raise bad(entry, "is not a JSON object")
    return cast("dict[str, Any]", said)


def _sizes(entry: TensorEntry, value: object) -> tuple[int, ...]:
    items = cast("list[object]", value) if isinstance(value, list) else []
    sizes = tuple(item for item in items if type(item) is int and 0 < item < 2**31)
    if len(sizes) != len(items):
        raise bad(entry, f"says a shape of {str(value)[:40]}")
    return sizes
