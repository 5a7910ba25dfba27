"""The architectures that our kernels run, as GGUF stores them: what becomes of the pairs and the tensors.

The names in GGUF come from the ``gguf`` package. What llama.cpp's converter changes is undone: it reorders
the rows of queries and keys for models whose rotary pairs are neighbours there, and adds 1 to Gemma's norms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gguf import get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES

from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.gguf.fields import Fields, NotCovered
from shoal.models.gguf.header import bad
from shoal.models.gguf.rope import DEFAULT_BASE, rope_parameters
from shoal.models.gguf.splits import Gguf

NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
ATTENTION = tuple(f"self_attn.{part}_proj.weight" for part in "qkvo")
MLP = ("mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight")
DENSE = (*NORMS, *ATTENTION, *MLP)
QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")
BIASES = tuple(f"self_attn.{part}_proj.bias" for part in "qkv")
MERGED = ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight", "mlp.gate_up_proj.weight")
GEMMA3 = ("pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight", *QK_NORMS)


@dataclass(frozen=True, slots=True)
class Family:
    """How one of GGUF's architectures is called in transformers, and what is in a block of it."""

    model_type: str
    architecture: str
    block: tuple[str, ...] = DENSE
    activation: str = "silu"
    in_pairs: bool = False
    """Rows of queries and keys are in llama.cpp's order."""
    biases: bool = False
    """All four matrices of attention may have biases."""
    norms_less: float = 0.0
    names_head_dim: bool = False
    """Its config always says how large a head is."""
    keys: tuple[str, ...] = ()
    """Keys beside those that all have."""


GELU = "gelu_pytorch_tanh"
SCALES = ("attention.scale", "embedding_scale", "residual_scale", "logit_scale")
FAMILIES = {
    "llama": Family("llama", "LlamaForCausalLM", in_pairs=True, biases=True, names_head_dim=True),
    "qwen2": Family("qwen2", "Qwen2ForCausalLM", (*DENSE, *BIASES)),
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", (*DENSE, *QK_NORMS), names_head_dim=True),
    "phi3": Family(
        "phi3",
        "Phi3ForCausalLM",
        (*NORMS, *MERGED, "mlp.down_proj.weight"),
        keys=("attention.sliding_window", "rope.scaling.attn_factor"),
    ),
    "smollm3": Family("smollm3", "SmolLM3ForCausalLM", in_pairs=True),
    "gemma": Family("gemma", "GemmaForCausalLM", activation=GELU, norms_less=1.0, names_head_dim=True),
    "gemma3": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        (*DENSE, *GEMMA3),
        activation=GELU,
        norms_less=1.0,
        names_head_dim=True,
        keys=(
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "rope.freq_base_swa",
            "final_logit_softcapping",
        ),
    ),
    "granite": Family("granite", "GraniteForCausalLM", in_pairs=True, biases=True, keys=SCALES),
}
"""By ``general.architecture``. Mistral is ``llama`` there."""
KEYS = frozenset(
    {
        *("vocab_size", "context_length", "embedding_length", "block_count", "feed_forward_length"),
        *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
        *("attention.value_length", "attention.layer_norm_rms_epsilon"),
        *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
        *("rope.scaling.finetuned", "rope.scaling.original_context_length"),
        *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    }
)
"""What is read of every architecture. A file that says more than we read is not converted here."""
SMOLLM3_ROPE_EVERY = 4
GEMMA3_PATTERN = 6
GEMMA3_27B_BLOCKS = 62


@dataclass(frozen=True, slots=True)
class Numbers:
    """The sizes that say every tensor's shape."""

    hidden: int
    ffn: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a block's tensor."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        matrices = {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "qkv_proj": (q + 2 * kv, self.hidden),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "gate_up_proj": (2 * self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }
        part, kind = name.split(".")[-2:]
        if part in matrices:
            return matrices[part] if kind == "weight" else matrices[part][:1]
        return (self.head_dim,) if part in ("q_norm", "k_norm") else (self.hidden,)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What a GGUF file becomes."""

    config: dict[str, Any]
    tensors: list[TensorEntry]
    """By the checkpoint's names, each where it lies in the GGUF files."""


def plan_conversion(gguf: Gguf) -> Conversion:
    """The config and the tensors of a model of one of :data:`FAMILIES`.

    Raises:
        NotCovered: another architecture, or one of these with something that is not read here.
        BadWeights: numbers that cannot be; a tensor is missing or has another shape.
        UnsupportedModel: see :func:`rope_parameters`.
    """
    fields = Fields(gguf)
    family = FAMILIES.get(fields.arch)
    if family is None:
        raise NotCovered(f"architecture {fields.arch[:80]!r}")
    arch = f"{fields.arch}."
    known = {arch + key for key in KEYS.union(family.keys)}
    if more := next((key for key in fields.named(arch) if key not in known and fields.says(key)), None):
        raise NotCovered(f"it says {more[:80]!r}")
    numbers = _numbers(gguf, fields)
    used: set[str] = set()
    biased = family.biases and "blk.0.attn_q.bias" in gguf.tensors
    config = _config(gguf, fields, family, numbers, used)
    if family.biases:
        config["attention_bias"] = biased
    names = (*family.block, *BIASES, "self_attn.o_proj.bias") if biased else family.block
    tensors = _place(gguf, fields.arch, family, numbers, names, used)
    if left := next((name for name in gguf.tensors if name not in used), None):
        raise NotCovered(f"it has a tensor {left[:80]!r}")
    return Conversion(config, tensors)


def _numbers(gguf: Gguf, fields: Fields) -> Numbers:
    arch = f"{fields.arch}."
    differing = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    if any(fields.is_list(arch + key) for key in differing):
        raise NotCovered("blocks that differ")
    hidden, heads = fields.size(f"{arch}embedding_length"), fields.size(f"{arch}attention.head_count")
    head_dim = fields.whole(f"{arch}attention.key_length") or hidden // heads
    if (fields.whole(f"{arch}attention.value_length") or head_dim) != head_dim:
        raise NotCovered("values of another size than keys")
    vocab = fields.whole(f"{arch}vocab_size") or len(fields.texts("tokenizer.ggml.tokens"))
    blocks = fields.size(f"{arch}block_count")
    if blocks > len(gguf.tensors):
        raise bad(gguf.file, f"it has {len(gguf.tensors)} tensors for {blocks} blocks")
    if head_dim % 2:
        raise bad(gguf.file, f"its heads have {head_dim} elements")
    return Numbers(
        hidden=hidden,
        ffn=fields.size(f"{arch}feed_forward_length"),
        blocks=blocks,
        heads=heads,
        kv_heads=fields.whole(f"{arch}attention.head_count_kv") or heads,
        head_dim=head_dim,
        vocab=vocab,
    )


def _config(gguf: Gguf, fields: Fields, family: Family, numbers: Numbers, used: set[str]) -> dict[str, Any]:
    arch = f"{fields.arch}."
    rotary = fields.whole(f"{arch}rope.dimension_count") or numbers.head_dim
    if rotary != numbers.head_dim and fields.arch != "phi3":
        raise NotCovered("heads that turn in part")
    epsilon = fields.number(f"{arch}attention.layer_norm_rms_epsilon")
    if epsilon is None:
        raise bad(gguf.file, f"its header does not say {arch}attention.layer_norm_rms_epsilon")
    rope = rope_parameters(gguf, fields, rotary, used)
    if rotary != numbers.head_dim:
        rope["partial_rotary_factor"] = rotary / numbers.head_dim
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "dtype": "float32",
        "hidden_size": numbers.hidden,
        "intermediate_size": numbers.ffn,
        "num_hidden_layers": numbers.blocks,
        "num_attention_heads": numbers.heads,
        "num_key_value_heads": numbers.kv_heads,
        "hidden_act": family.activation,
        "rms_norm_eps": epsilon,
        "vocab_size": numbers.vocab,
        "max_position_embeddings": fields.size(f"{arch}context_length"),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "rope_parameters": rope,
        "bos_token_id": fields.whole("tokenizer.ggml.bos_token_id"),
        "eos_token_id": fields.whole("tokenizer.ggml.eos_token_id"),
        "pad_token_id": fields.whole("tokenizer.ggml.padding_token_id"),
    }
    if family.names_head_dim or numbers.head_dim != numbers.hidden // numbers.heads:
        config["head_dim"] = numbers.head_dim
    more = {"phi3": _phi3, "smollm3": _smollm3, "gemma3": _gemma3, "granite": _granite}.get(fields.arch)
    return config | more(fields, numbers, config) if more is not None else config


def _phi3(fields: Fields, numbers: Numbers, config: dict[str, Any]) -> dict[str, Any]:
    original = fields.whole("phi3.rope.scaling.original_context_length")
    return {
        "original_max_position_embeddings": original or config["max_position_embeddings"],
        "sliding_window": fields.whole("phi3.attention.sliding_window") or None,
    }


def _smollm3(fields: Fields, numbers: Numbers, config: dict[str, Any]) -> dict[str, Any]:
    """Every fourth block has no positions; GGUF does not say so, and llama.cpp knows it by the name."""
    every = SMOLLM3_ROPE_EVERY
    return {
        "no_rope_layer_interval": every,
        "no_rope_layers": [int((block + 1) % every != 0) for block in range(numbers.blocks)],
        "use_sliding_window": False,
    }


def _gemma3(fields: Fields, numbers: Numbers, config: dict[str, Any]) -> dict[str, Any]:
    """Windows in all blocks but every sixth; their positions are never scaled."""
    key = "gemma3.attention.sliding_window_pattern"
    if fields.is_list(key):
        sliding = [bool(value) for value in fields.numbers(key)]
    else:
        every = fields.whole(key) or GEMMA3_PATTERN
        sliding = [(block + 1) % every != 0 for block in range(numbers.blocks)]
    if len(sliding) != numbers.blocks:
        raise NotCovered("a pattern of windows of another length")
    base = fields.number("gemma3.rope.freq_base_swa") or DEFAULT_BASE
    # The one Gemma 3 whose scores are not scaled by the size of a head. llama.cpp knows it by its blocks.
    largest = numbers.blocks == GEMMA3_27B_BLOCKS
    return {
        "hidden_activation": config.pop("hidden_act"),
        "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
        "sliding_window": fields.size("gemma3.attention.sliding_window"),
        "query_pre_attn_scalar": numbers.hidden // numbers.heads if largest else numbers.head_dim,
        "final_logit_softcapping": fields.number("gemma3.final_logit_softcapping") or None,
        "attn_logit_softcapping": None,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": base},
            "full_attention": config["rope_parameters"],
        },
    }


def _granite(fields: Fields, numbers: Numbers, config: dict[str, Any]) -> dict[str, Any]:
    names = dict(
        zip(
            SCALES,
            ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling"),
            strict=True,
        )
    )
    stated = {name: fields.number(f"granite.{key}") for key, name in names.items()}
    defaults = dict.fromkeys(stated, 1.0) | {"attention_multiplier": numbers.head_dim**-0.5}
    return {name: value or defaults[name] for name, value in stated.items()}


def _place(
    gguf: Gguf, arch: str, family: Family, numbers: Numbers, block: tuple[str, ...], used: set[str]
) -> list[TensorEntry]:
    """Every tensor of the checkpoint, where it lies; adds the names that it has there to ``used``."""
    kind = next(kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch)
    names = get_tensor_name_map(kind, numbers.blocks)
    tensors = gguf.tensors

    def place(name: str, shape: tuple[int, ...]) -> TensorEntry:
        stored = str(names.get_name(name, try_suffixes=(".weight", ".bias")))
        source = tensors.get(stored)
        if source is None:
            raise bad(gguf.file, f"tensor {stored!r} is missing")
        if source.shape != shape:
            raise bad(gguf.file, f"tensor {stored!r} has shape {source.shape}, not {shape}")
        part = name.split(".")[-2]
        heads = {"q_proj": numbers.heads, "k_proj": numbers.kv_heads}.get(part, 0) if family.in_pairs else 0
        if heads and source.size < source.shape[0]:  # less than a byte each: the vector is of blocks
            raise NotCovered(f"a vector {stored!r} of type {source.type.name}")
        used.add(stored)
        less = family.norms_less if part.endswith("norm") else 0.0
        return source.entry(name, heads=heads, less=less)

    found = [
        place("model.embed_tokens.weight", (numbers.vocab, numbers.hidden)),
        place("model.norm.weight", (numbers.hidden,)),
    ]
    if "output.weight" in tensors:
        found.append(place("lm_head.weight", (numbers.vocab, numbers.hidden)))
    for index in range(numbers.blocks):
        found += [place(f"model.layers.{index}.{name}", numbers.shape(name)) for name in block]
    return found
