"""Which schemes of quantisation are read, and how a checkpoint in one looks to all else: as the plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.quantized.awq import awq_entries
from shoal.models.quantized.bitsandbytes import bitsandbytes_entries
from shoal.models.quantized.compressed import compressed_entries
from shoal.models.quantized.entry import QuantizedEntry, bad
from shoal.models.quantized.fp8 import fp8_entries
from shoal.models.quantized.gptq import gptq_entries
from shoal.models.quantized.mxfp4 import mxfp4_entries
from shoal.models.quantized.settings import SchemeSettings

Entries = Callable[[SchemeSettings, Mapping[str, TensorEntry]], Iterator[QuantizedEntry]]

SCHEMES: dict[str, Entries] = {
    "gptq": gptq_entries,
    "awq": awq_entries,
    "compressed-tensors": compressed_entries,
    "fp8": fp8_entries,
    "fbgemm_fp8": fp8_entries,
    "mxfp4": mxfp4_entries,
    "bitsandbytes": bitsandbytes_entries,
}
"""By ``quant_method`` of ``quantization_config``."""
CODES = (".qweight", ".weight_packed", "_blocks")
"""How the names of codes end; others are called ``weight``, and are no floats."""
CACHE_SCALES = (".k_scale", ".v_scale", ".q_scale", ".k_zero_point", ".v_zero_point")
"""Of keys and values, which are held as a session's own setting says."""


def read_settings(folder: Path, values: object, model_type: str) -> SchemeSettings:
    """What a config's ``quantization_config`` says.

    Raises:
        BadWeights: it is no object.
        UnsupportedModel: the scheme is not one that is read.
    """
    if not isinstance(values, dict):
        raise BadWeights(f"{folder / 'config.json'}: quantization_config is {str(values)[:40]!r}")
    said = cast("dict[str, Any]", values)
    method = said.get("quant_method")
    if method is None and (said.get("load_in_4bit") or said.get("load_in_8bit")):
        method = "bitsandbytes"  # as its first versions were saved
    if not isinstance(method, str) or method not in SCHEMES:
        raise UnsupportedModel(
            f"{folder}: its weights are quantised by {str(method)[:40]!r}, which is not read",
            check=f"take the unquantised model, a GGUF file, or one quantised by {', '.join(SCHEMES)}",
        )
    return SchemeSettings(folder, method, said, model_type)


def plain_tensors(settings: SchemeSettings, tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """A quantised checkpoint's tensors by the names of the plain one; those that are not quantised stay.

    Raises:
        BadWeights: a tensor is missing, or of a shape that the others or the settings contradict.
        UnsupportedModel: it is in a variant of its scheme that is not read.
    """
    found = {entry.name: entry for entry in SCHEMES[settings.method](settings, tensors)}
    if not found:
        raise BadWeights(
            f"{settings.folder}: its config says {settings.method}, and no tensor is quantised by it",
            check="check that config.json is the one that came with the weights",
        )
    used = {(part.file, part.name) for entry in found.values() for part in entry.parts.values()}
    rest = {
        name: entry
        for name, entry in tensors.items()
        if (entry.file, entry.name) not in used and not name.endswith(CACHE_SCALES)
    }
    for name, entry in rest.items():
        whole = name.endswith(".weight") and entry.dtype in ("I8", "U8", "I32")
        if name in found or name.endswith(CODES) or whole or entry.dtype.startswith("F8"):
            raise bad(entry, f"is {entry.dtype}, and {settings.method} has nothing that explains it")
    return {**rest, **found}
