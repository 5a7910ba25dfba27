"""Rotary positions: what a GGUF file says of them, as ``rope_parameters`` of a config.

Llama 3's scaling and Phi-3's two lists are not pairs in GGUF but tensors of factors.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import UnsupportedModel
from shoal.models.gguf.fields import Fields, NotCovered
from shoal.models.gguf.splits import Gguf
from shoal.models.gguf.weights import read_floats

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""As every Llama 3.1, 3.2 and 3.3 has it; GGUF has the frequencies that come of it alone."""
FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
DEFAULT_BASE = 10_000.0


def rope_parameters(gguf: Gguf, fields: Fields, rotary: int, used: set[str]) -> dict[str, Any]:
    """The parameters for heads of which ``rotary`` elements turn; adds the tensors that are read to ``used``.

    Raises:
        NotCovered: a kind of scaling that is not converted here.
        UnsupportedModel: frequencies that no config can say.
    """
    rope = f"{fields.arch}.rope"
    base = fields.number(f"{rope}.freq_base") or DEFAULT_BASE
    found = _scaling(fields, f"{rope}.scaling")
    if FACTORS in gguf.tensors:
        used.add(FACTORS)
        factors = read_floats(gguf.tensors[FACTORS].entry(FACTORS))
        found = _llama3(gguf, factors, base, rotary) if np.any(factors != 1.0) else found
    if LONG in gguf.tensors and SHORT in gguf.tensors:
        used |= {LONG, SHORT}
        original = fields.size(f"{rope}.scaling.original_context_length")
        found = {
            "rope_type": "longrope",
            "long_factor": read_floats(gguf.tensors[LONG].entry(LONG)).tolist(),
            "short_factor": read_floats(gguf.tensors[SHORT].entry(SHORT)).tolist(),
            "original_max_position_embeddings": original,
        }
    return {"rope_theta": base, **found}


def _scaling(fields: Fields, scaling: str) -> dict[str, Any]:
    kind = fields.text(f"{scaling}.type") or "none"
    if kind in ("none", "longrope"):  # longrope: the lists are tensors
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise NotCovered(f"positions scaled by {kind}")
    found: dict[str, Any] = {"rope_type": kind, "factor": fields.number(f"{scaling}.factor") or 1.0}
    if kind == "yarn":
        original = fields.whole(f"{scaling}.original_context_length")
        betas = {name: fields.number(f"{scaling}.yarn_{name}") for name in ("beta_fast", "beta_slow")}
        found |= {name: beta for name, beta in betas.items() if beta is not None}
        found |= {"original_max_position_embeddings": original} if original else {}
    return found


def _llama3(gguf: Gguf, factors: NDArray[np.float32], base: float, rotary: int) -> dict[str, Any]:
    """The parameters that give ``factors``, what each frequency is divided by.

    The formula is that of Llama 3.1's own code: long waves are slowed by the factor, short ones not at all,
    and those between by something between.
    """
    factor = round(float(factors.max()), 4)
    frequencies = base ** (-np.arange(0, rotary, 2) / rotary)
    low, high, original = LLAMA3.values()
    turns = original * frequencies / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise UnsupportedModel(
            f"{gguf.file}: its rotary frequencies ({FACTORS}) are not those of Llama 3",
            check="use the model's safetensors, if there are any",
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}
