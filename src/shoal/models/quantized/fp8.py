"""FP8: a float of eight bits for each weight, and a scale for each block of them, row of them, or matrix.

Block scales are DeepSeek's (``weight_scale_inv``, 128 x 128); scales of rows are fbgemm's (``weight_scale``).
Scales of activations are not used: activations are not quantised here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.codes import FLOAT8
from shoal.models.quantized.entry import QuantizedEntry, missing, quantized_entry
from shoal.models.quantized.scaled import ScaledLayout, scale_grid
from shoal.models.quantized.settings import SchemeSettings

ACTIVATIONS = ("activation_scale", "input_scale", "input_scale_ub")


def fp8_entries(settings: SchemeSettings, tensors: Mapping[str, TensorEntry]) -> Iterator[QuantizedEntry]:
    """The weights of a checkpoint in FP8.

    Raises:
        BadWeights: a scale is missing, or of a shape that the weight or the settings contradict.
    """
    if settings.method == "fbgemm_fp8":
        suffix, blocks = "_scale", ((1, 0),)
    else:
        size = settings.values.get("weight_block_size", [128, 128])
        suffix = "_scale_inv"
        blocks = ((0, 0),) if size is None else (settings.pair("weight_block_size", size),)
    for name, codes in tensors.items():
        if codes.dtype not in FLOAT8:
            continue
        scales = tensors.get(name + suffix)
        if scales is None:
            raise missing(settings.folder, name + suffix, name)
        if scales.dtype == "U8":  # exponents, whose writer's safetensors had no name for them
            scales = replace(scales, dtype="F8_E8M0")
        layout = ScaledLayout(scale_grid(codes, scales, codes.shape, blocks), codes.dtype)
        parts = {"codes": codes, "scales": scales}
        owner = name.rpartition(".")[0]
        parts |= {part: tensors[f"{owner}.{part}"] for part in ACTIVATIONS if f"{owner}.{part}" in tensors}
        yield quantized_entry(name, "FP8", codes.shape, parts, layout)
