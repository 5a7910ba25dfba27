"""MXFP4 as gpt-oss has it: floats of four bits, 32 to a scale that is a power of two.

Of experts' weights ``[experts, cols, rows]`` the file has ``_blocks``, uint8 ``[experts, rows, groups, 16]``,
of which each byte has two codes, the lower first, and ``_scales``, the exponents plus 127, ``[experts, rows,
groups]`` (OCP Microscaling Formats 1.0; transformers' ``integrations/mxfp4.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.codes import FP4, nibbles
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
from shoal.models.quantized.settings import SchemeSettings

GROUP = 32


@dataclass(frozen=True, slots=True)
class Mxfp4Layout:
    """How MXFP4 stores matrices of ``groups`` times 32 columns."""

    groups: int
    bits: int | None = None
    group: int = GROUP
    has_zeros: bool = False

    def open(self, parts: StoredArrays) -> RowReader:
        blocks = parts["blocks"].reshape(-1, self.groups * GROUP // 2)
        scales = parts["scales"].reshape(-1, self.groups)

        def read(rows: RowIndex) -> QuantizedRows:
            return QuantizedRows(FP4[nibbles(np.asarray(blocks[rows]))], scales[rows])

        return read


def mxfp4_entries(settings: SchemeSettings, tensors: Mapping[str, TensorEntry]) -> Iterator[QuantizedEntry]:
    """The experts of a checkpoint in MXFP4.

    Raises:
        BadWeights: a tensor is missing, or of a shape that the other contradicts.
    """
    for name, blocks in tensors.items():
        if not name.endswith("_blocks") or blocks.dtype != "U8":
            continue
        weight = name.removesuffix("_blocks")
        scales = tensors.get(f"{weight}_scales")
        if scales is None:
            raise missing(settings.folder, f"{weight}_scales", name)
        if len(blocks.shape) != 4 or blocks.shape[-1] != GROUP // 2 or not all(blocks.shape):
            raise bad(
                blocks, f"has the shape {list(blocks.shape)}, which are no blocks of {GROUP // 2} bytes"
            )
        if scales.dtype not in ("U8", "F8_E8M0") or scales.shape != blocks.shape[:-1]:
            raise bad(
                scales, f"is {scales.dtype} {list(scales.shape)}, and should be U8 {list(blocks.shape[:-1])}"
            )
        experts, rows, groups, _ = blocks.shape
        parts = {"blocks": blocks, "scales": replace(scales, dtype="F8_E8M0")}
        layout = Mxfp4Layout(groups)
        yield quantized_entry(weight, "MXFP4", (experts, groups * GROUP, rows), parts, layout, turned=True)
