"""GPTQ's tensors: codes packed down the columns, a scale and a zero for each group of a row's weights.

As AutoGPTQ and GPTQModel write them (``BaseQuantLinear.pack_original``): ``qweight`` has the codes of a
weight ``[rows, cols]`` as int32 ``[cols * bits / 32, rows]``, ``scales`` are ``[groups, rows]``, ``qzeros``
``[groups, rows * bits / 32]``, and ``g_idx`` says of each column which group it is of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.models.checkpoint.headers import FLOATING, TensorEntry
from shoal.models.quantized.codes import unpack
from shoal.models.quantized.entry import (
    QuantizedEntry,
    QuantizedRows,
    RowIndex,
    RowReader,
    StoredArrays,
    bad,
    packed_modules,
    quantized_entry,
)
from shoal.models.quantized.settings import SchemeSettings

BITS = (2, 3, 4, 8)
FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True, slots=True)
class GptqLayout:
    """How GPTQ stores a matrix."""

    bits: int
    group: int
    rows: int
    cols: int
    one_less: bool = False
    """Whether zeros are stored less 1, as the first version of the format has them."""
    has_zeros: bool = True

    def open(self, parts: StoredArrays) -> RowReader:
        words, scales = parts["qweight"], parts["scales"]
        zeros = unpack(self._zero_words(parts["qzeros"]), self.bits, self.rows)
        if self.one_less and self.bits == 3:
            zeros = (zeros + 1) & 7
        order = _order(parts.get("g_idx"), self.group, len(scales), self.cols)

        def read(rows: RowIndex) -> QuantizedRows:
            codes = unpack(words[:, rows].T, self.bits, self.cols)
            return QuantizedRows(codes, scales[:, rows].T, zeros[:, rows].T, order)

        return read

    def _zero_words(self, words: NDArray[np.int32]) -> NDArray[np.int32]:
        if not self.one_less or 32 % self.bits:
            return words
        # The writer takes one off each zero by one subtraction from the whole word, borrows included.
        ones = sum(1 << at for at in range(0, 32, self.bits))
        return (words.view(np.uint32) + np.uint32(ones)).view(np.int32)


def _order(stored: NDArray[Any] | None, group: int, groups: int, cols: int) -> NDArray[np.intp] | None:
    """Of each column its group, where they are not in order.

    Raises:
        ValueError: there is no such group.
    """
    in_order = np.arange(cols) // group
    if stored is None or np.array_equal(stored, in_order):
        return None if groups * group == cols else in_order
    if stored.size and not 0 <= int(stored.min()) <= int(stored.max()) < groups:
        raise ValueError(f"has columns of group {int(stored.max())} (g_idx), and there are {groups} groups")
    return stored.astype(np.intp)


def gptq_entries(settings: SchemeSettings, tensors: Mapping[str, TensorEntry]) -> Iterator[QuantizedEntry]:
    """The weights of a checkpoint that GPTQ wrote.

    Raises:
        BadWeights: a tensor is missing, or of a shape that the others or the settings contradict.
        UnsupportedModel: it is of another version of the format.
    """
    version = settings.text("checkpoint_format", settings.text("format", "gptq"))
    if version not in FORMATS or settings.flag("is_marlin_format"):
        raise settings.unsupported(f"in the format {version[:40]!r}", f"{' and '.join(FORMATS)} are read")
    bits, group = settings.size("bits"), settings.group_size()
    if bits not in BITS:
        raise settings.unsupported(f"in {bits} bits", "2, 3, 4 and 8 bits are read")
    varied = bool(settings.values.get("dynamic"))  # some modules have bits and groups of their own
    for module, parts in packed_modules(tensors, settings.folder):
        if module + "g_idx" in tensors:
            parts["g_idx"] = tensors[module + "g_idx"]
        layout = _layout(parts, bits, group, varied=varied)
        layout = replace(layout, one_less=version == "gptq", has_zeros=not settings.flag("sym"))
        turned = settings.turns(module)
        shape = (layout.cols, layout.rows) if turned else (layout.rows, layout.cols)
        yield quantized_entry(f"{module}weight", f"GPTQ{layout.bits}", shape, parts, layout, turned=turned)


def _layout(parts: Mapping[str, TensorEntry], bits: int, group: int, *, varied: bool) -> GptqLayout:
    """The layout that the shapes and the settings make, or the shapes alone where modules' settings vary."""
    codes, scales, zeros, order = parts["qweight"], parts["scales"], parts["qzeros"], parts.get("g_idx")
    if codes.dtype != "I32" or len(codes.shape) != 2 or not all(codes.shape):
        raise bad(codes, f"is {codes.dtype} {list(codes.shape)}, and should be I32 with two dimensions")
    if varied and order is not None and order.shape and order.shape[0]:
        bits = codes.shape[0] * 32 // order.shape[0]
    words, rows = codes.shape
    cols = words * 32 // bits
    if bits not in BITS or words * 32 % bits:
        raise bad(codes, f"has {words} rows, which are no whole number of columns of {bits} bits")
    if (
        scales.dtype not in FLOATING
        or len(scales.shape) != 2
        or scales.shape[1] != rows
        or not scales.shape[0]
    ):
        raise bad(scales, f"is {scales.dtype} {list(scales.shape)}, which does not fit {rows} rows")
    groups = scales.shape[0]
    if varied:
        group = -(-cols // groups)
    group = cols if group == -1 else group
    if groups != -(-cols // group):
        raise bad(
            scales,
            f"has {groups} groups, where groups of {group} of {cols} columns (group_size) are "
            f"{-(-cols // group)}",
        )
    if zeros.dtype != "I32" or zeros.shape != (groups, -(-rows * bits // 32)):
        raise bad(
            zeros,
            f"is {zeros.dtype} {list(zeros.shape)}, where {groups} groups of {rows} rows in {bits} bits are "
            f"I32 {[groups, -(-rows * bits // 32)]}",
        )
    if order is not None and (order.dtype not in ("I32", "I64") or order.shape != (cols,)):
        raise bad(order, f"is {order.dtype} {list(order.shape)}, and there are {cols} columns")
    return GptqLayout(bits, group, rows, cols)
