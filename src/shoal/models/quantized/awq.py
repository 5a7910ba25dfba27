"""AWQ's tensors, in the order of its GEMM kernels: codes packed along the rows, eight to a word.

As AutoAWQ writes them (``WQLinear_GEMM.from_linear``): ``qweight`` has the codes of a weight ``[rows, cols]``
as int32 ``[cols, rows / 8]``, ``qzeros`` are ``[groups, rows / 8]`` in the same order, and ``scales``
``[groups, rows]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shoal.models.checkpoint.headers import FLOATING, TensorEntry
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

PACKED = 8
SHIFTS = 4 * np.array([0, 4, 1, 5, 2, 6, 3, 7], np.int32)
"""Where in a word each of eight rows is: the writer puts 0, 2, 4, 6, 1, 3, 5, 7 one after another."""


@dataclass(frozen=True, slots=True)
class AwqLayout:
    """How AWQ stores a matrix."""

    rows: int
    group: int
    bits: int = 4
    has_zeros: bool = True

    def open(self, parts: StoredArrays) -> RowReader:
        words, scales = parts["qweight"], parts["scales"]
        zeros = _columns(parts["qzeros"], np.arange(self.rows))

        def read(rows: RowIndex) -> QuantizedRows:
            which = np.arange(self.rows)[rows]
            return QuantizedRows(_columns(words, which).T, scales[:, which].T, zeros[:, which].T)

        return read


def _columns(words: NDArray[np.int32], which: NDArray[np.intp]) -> NDArray[np.uint8]:
    """Some columns of what is packed along its rows, ``[n, len(which)]``."""
    return ((words[:, which // PACKED] >> SHIFTS[which % PACKED]) & 15).astype(np.uint8)


def awq_entries(settings: SchemeSettings, tensors: Mapping[str, TensorEntry]) -> Iterator[QuantizedEntry]:
    """The weights of a checkpoint that AWQ wrote.

    Raises:
        BadWeights: a tensor is missing, or of a shape that the others or the settings contradict.
        UnsupportedModel: it is for other kernels.
    """
    version = settings.text("version", settings.text("format", "gemm"))
    if version != "gemm" or settings.text("backend", "autoawq") == "llm-awq":
        raise settings.unsupported(f"in the format {version[:40]!r}", "the format gemm is read")
    if settings.size("bits") != 4:
        raise settings.unsupported(f"in {settings.size('bits')} bits", "4 bits are read")
    if scaled := next((name for name in tensors if name.endswith(".act.scales")), None):
        raise settings.unsupported(f"with scaled activations ({scaled[:80]})", "those without are read")
    for module, parts in packed_modules(tensors, settings.folder):
        shape = _check(parts, settings.group_size())
        layout = AwqLayout(shape[0], shape[1] // parts["scales"].shape[0])
        yield quantized_entry(f"{module}weight", "AWQ4", shape, parts, layout)


def _check(parts: Mapping[str, TensorEntry], group: int) -> tuple[int, int]:
    """The shape of the weight that these make up."""
    codes, scales, zeros = parts["qweight"], parts["scales"], parts["qzeros"]
    if codes.dtype != "I32" or len(codes.shape) != 2 or not all(codes.shape):
        raise bad(codes, f"is {codes.dtype} {list(codes.shape)}, and should be I32 with two dimensions")
    cols, rows = codes.shape[0], codes.shape[1] * PACKED
    group = cols if group == -1 else group
    groups = cols // group
    if cols % group:
        raise bad(codes, f"has {cols} columns, which are no whole groups of {group} (group_size)")
    if scales.dtype not in FLOATING or scales.shape != (groups, rows):
        raise bad(
            scales,
            f"is {scales.dtype} {list(scales.shape)}, where groups of {group} (group_size) make it "
            f"{[groups, rows]}",
        )
    if zeros.dtype != "I32" or zeros.shape != (groups, rows // PACKED):
        raise bad(
            zeros, f"is {zeros.dtype} {list(zeros.shape)}, and should be I32 {[groups, rows // PACKED]}"
        )
    return rows, cols
