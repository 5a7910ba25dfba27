"""Which models are of Llama's shape, and with which numbers: read from the config, nothing loaded.

The shape: RMSNorm, attention with grouped queries and rotary positions, RMSNorm, a gated MLP (Touvron et al.,
"LLaMA", 2023), with the variations of the families below. A config that says anything else is not ours, and
the model's own modules run it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from shoal.executor.pages import PAGE
from shoal.executor.rope import Rope, rope_of
from shoal.models.checkpoint.llama_config import LlamaConfig, read_llama_config
from shoal.models.checkpoint.mrope import Sections
from shoal.types import Kv

Axes: TypeAlias = "npt.NDArray[np.uint8]"
ACTIVATIONS = {"silu": 0, "gelu_pytorch_tanh": 1, "gelu_new": 1}
"""By config's name, the kernels' number."""
NO_ROPE = -1


# Families in which these linear layers have biases: always, or where the config says so.
ATTENTION_BIAS = ("llama", "qwen3", "smollm3", "gemma", "gemma3_text", "granite")
MLP_BIAS = ("llama", "smollm3", "granite")


@dataclass(frozen=True, slots=True)
class LlamaShape:
    """The numbers of a model of Llama's shape."""

    family: str
    """The config's ``model_type``."""
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
    head_norms: bool
    """Queries and keys go through norms (Qwen 3, Gemma 3)."""
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    tied: bool
    """The head is the embedding."""
    ropes: tuple[Rope, ...]
    windows: tuple[int, ...]
    """By block: tokens that a token sees, itself included; 0: all."""
    rope_of: tuple[int, ...]
    """By block: which of ``ropes``, or ``NO_ROPE``."""
    sections: Sections | None
    """Where rows of pictures have three positions (Qwen-VL): how many pairs turn by each."""

    @property
    def rotary(self) -> int:
        """Elements of a head that turn."""
        return 2 * len(self.ropes[0].frequencies)

    @property
    def axes(self) -> Axes:
        """Which of a row's three positions turns each pair, ``[rotary / 2]``."""
        pairs = self.sections or (self.rotary // 2, 0, 0)
        return np.repeat(np.arange(3, dtype=np.uint8), pairs)

    @property
    def products(self) -> tuple[tuple[int, int], ...]:
        """What goes out and what comes in of each of a block's products: QKV, out, gate and up, down."""
        queries = self.heads * self.head_dim
        qkv = queries + 2 * self.kv_heads * self.head_dim
        return (
            (qkv, self.hidden),
            (self.hidden, queries),
            (2 * self.ffn, self.hidden),
            (self.hidden, self.ffn),
        )

    def kv_page_bytes(self, kv: Kv) -> int:
        """Bytes of a page of one block's keys and values, as native/attention.c lays them out."""
        element = 1 if kv == "int8" else 2
        scales = 2 * _aligned(4 * PAGE * self.kv_heads) if kv == "int8" else 0
        keys, values = self.head_dim, (self.head_dim + 15) // 16 * 16
        row = PAGE * self.kv_heads * element
        return _aligned(row * keys) + _aligned(row * values) + scales


def _aligned(count: int) -> int:
    return (count + 63) // 64 * 64


def llama_shape(config: Mapping[str, Any]) -> LlamaShape | None:
    """The shape of a model by its ``config.json``, or ``None`` when it is not Llama's in every respect."""
    c = read_llama_config(config)
    activation = ACTIVATIONS.get(c.hidden_act) if c else None
    if c is None or activation is None:
        return None
    gemma = c.model_type.startswith("gemma")
    biased = c.attention_bias and c.model_type in ATTENTION_BIAS
    distinct = list(dict.fromkeys(c.ropes.values()))
    return LlamaShape(
        family=c.model_type,
        hidden=c.hidden_size,
        ffn=c.intermediate_size,
        heads=c.num_attention_heads,
        kv_heads=c.num_key_value_heads,
        head_dim=c.head_dim,
        activation=activation,
        epsilon=c.rms_norm_eps,
        scale=_attention_scale(c),
        residual=c.residual_multiplier,
        embedding=c.hidden_size**0.5 if gemma else c.embedding_multiplier,
        logits=c.logits_scaling,
        norm_offset=1.0 if gemma else 0.0,
        merged=c.model_type == "phi3",
        post_norms=c.model_type == "gemma3_text",
        head_norms=c.model_type in ("qwen3", "gemma3_text"),
        qkv_bias=biased or c.model_type == "qwen2",
        out_bias=biased,
        mlp_bias=c.mlp_bias and c.model_type in MLP_BIAS,
        tied=c.tie_word_embeddings,
        ropes=tuple(map(rope_of, distinct)),
        windows=tuple(_window(c, kind) for kind in c.layer_types),
        rope_of=tuple(
            distinct.index(c.ropes[kind]) if turned else NO_ROPE
            for kind, turned in zip(c.layer_types, c.no_rope_layers, strict=True)
        ),
        sections=c.mrope_section,
    )


def _attention_scale(c: LlamaConfig) -> float:
    if c.model_type == "gemma3_text":
        return float(c.query_pre_attn_scalar) ** -0.5
    return float(c.head_dim**-0.5 if c.attention_multiplier is None else c.attention_multiplier)


def _window(c: LlamaConfig, kind: str) -> int:
    return c.sliding_window or 0 if kind == "sliding_attention" else 0
