"""Which models are of Llama's shape, and with which numbers: read from the config, nothing loaded.

The shape: RMSNorm, attention with grouped queries and rotary positions, RMSNorm, a gated MLP (Touvron et al.,
"LLaMA", 2023), with the variations of the families below. A config that says anything else is not ours, and
the model's own modules run it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PretrainedConfig

FAMILIES = frozenset(
    {"llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3", "gemma", "gemma3_text", "granite"}
)
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}
"""By config's name, the kernels' number."""
ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions whose frequencies do not change with the context's length."""
NO_ROPE = -1


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: angles are position x frequency (Su et al., "RoFormer", 2021)."""

    frequencies: torch.Tensor
    """float32 ``[rotary / 2]``"""
    scale: float
    """What cosines and sines are multiplied by (YaRN)."""


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers of a model of Llama's shape."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    activation: int
    epsilon: float
    scale: float
    """Of attention's scores."""
    residual: float
    """What a block adds is multiplied by it (Granite)."""
    embedding: float
    """Embeddings are multiplied by it (Gemma, Granite)."""
    logits: float
    """Logits are divided by it (Granite)."""
    norm_offset: float
    """Added to the weights of norms (Gemma's are stored less 1)."""
    merged: bool
    """QKV, and gate and up, lie in one tensor each (Phi-3)."""
    post_norms: bool
    """What a block adds goes through a norm (Gemma 3)."""
    ropes: tuple[Rope, ...]
    windows: tuple[int, ...]
    """By block: tokens that a token sees, itself included; 0: all."""
    rope_of: tuple[int, ...]
    """By block: which of ``ropes``, or ``NO_ROPE``."""

    @property
    def rotary(self) -> int:
        """Elements of a head that turn."""
        return 2 * len(self.ropes[0].frequencies)


def llama_shape(config: PretrainedConfig) -> LlamaShape | None:
    """The shape of a model, or ``None`` when it is not Llama's in every respect."""
    c = cast(Any, config)
    if c.model_type not in FAMILIES:
        return None
    activation = ACTIVATIONS.get(_activation(c))
    ropes = _ropes(c)
    if activation is None or ropes is None:
        return None
    if any(getattr(c, name, None) for name in ("attn_logit_softcapping", "final_logit_softcapping")):
        return None
    gemma = c.model_type.startswith("gemma")
    heads = int(c.num_attention_heads)
    head_dim = int(getattr(c, "head_dim", None) or c.hidden_size // heads)
    types = _layer_types(c)
    kinds, by_kind = ropes
    return LlamaShape(
        hidden=int(c.hidden_size),
        ffn=int(c.intermediate_size),
        heads=heads,
        kv_heads=int(getattr(c, "num_key_value_heads", None) or heads),
        head_dim=head_dim,
        activation=activation,
        epsilon=float(c.rms_norm_eps),
        scale=_attention_scale(c, head_dim),
        residual=float(getattr(c, "residual_multiplier", 1.0)),
        embedding=c.hidden_size**0.5 if gemma else float(getattr(c, "embedding_multiplier", 1.0)),
        logits=float(getattr(c, "logits_scaling", 1.0)),
        norm_offset=1.0 if gemma else 0.0,
        merged=c.model_type == "phi3",
        post_norms=c.model_type == "gemma3_text",
        ropes=kinds,
        windows=tuple(int(c.sliding_window) if kind == "sliding_attention" else 0 for kind in types),
        rope_of=tuple(_rope_of(c, block, kind, by_kind) for block, kind in enumerate(types)),
    )


def _activation(c: Any) -> str:
    return str(getattr(c, "hidden_activation", None) or getattr(c, "hidden_act", ""))


def _attention_scale(c: Any, head_dim: int) -> float:
    if c.model_type == "gemma3_text":
        return float(c.query_pre_attn_scalar) ** -0.5
    return float(getattr(c, "attention_multiplier", None) or head_dim**-0.5)


def _layer_types(c: Any) -> list[str]:
    types = getattr(c, "layer_types", None)
    if types:
        return list(types)
    sliding = c.model_type in ("mistral", "phi3") and getattr(c, "sliding_window", None)
    return ["sliding_attention" if sliding else "full_attention"] * int(c.num_hidden_layers)


def _rope_of(c: Any, block: int, kind: str, by_kind: dict[str, int]) -> int:
    turned = getattr(c, "no_rope_layers", None)  # SmolLM3: 1 where positions are rotary
    if turned and not turned[block]:
        return NO_ROPE
    return by_kind.get(kind, 0)


def _ropes(c: Any) -> tuple[tuple[Rope, ...], dict[str, int]] | None:
    """The kinds of rotary positions, and which kind of block has which."""
    parameters = cast("dict[str, Any]", getattr(c, "rope_parameters", None) or {})
    if "rope_type" in parameters or "rope_theta" in parameters:
        rope = _rope(c, parameters, None)
        return None if rope is None else ((rope,), {})
    kinds = {name: _rope(c, value, name) for name, value in parameters.items() if isinstance(value, dict)}
    if not kinds or len(kinds) > 2 or None in kinds.values():
        return None
    ropes = tuple(cast("list[Rope]", list(kinds.values())))
    return ropes, {name: number for number, name in enumerate(kinds)}


def _rope(c: Any, parameters: dict[str, Any], kind: str | None) -> Rope | None:
    rope_type = parameters.get("rope_type", "default")
    if rope_type not in ROPES:
        return None
    if rope_type == "default":
        head_dim = int(getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads)
        share = parameters.get("partial_rotary_factor") or getattr(c, "partial_rotary_factor", None) or 1.0
        rotary = int(head_dim * share)
        exponents = torch.arange(0, rotary, 2, dtype=torch.int64).float() / rotary
        return Rope(1.0 / (float(parameters["rope_theta"]) ** exponents), 1.0)
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: PLC0415 — rare, and slow to import

    frequencies, scale = ROPE_INIT_FUNCTIONS[rope_type](c, torch.device("cpu"), layer_type=kind)
    return Rope(frequencies.float().contiguous(), float(scale))
