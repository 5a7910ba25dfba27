"""The config of a model of Llama's shape, read from ``config.json`` as transformers reads it, and without it.

Transformers takes seconds to import, and all that our kernels need of it for these families is which value a
field has when the file leaves it out or calls it by an older name. Whatever is not understood completely
gives ``None``: then the model is read, and run, by transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from shoal.models.checkpoint.mrope import MROPE_SECTIONS, Sections, read_sections

RopeType = Literal["default", "linear", "llama3", "yarn"]
"""Kinds of rotary positions whose frequencies do not change with the context's length."""

_SIZES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "eos_token_id"),
)
_DEFAULT_SIZES: dict[str, tuple[int | None, ...]] = {
    "llama": (32000, 4096, 11008, 32, 32, None, 2048, 2),
    "mistral": (32000, 4096, 14336, 32, 32, 8, 131072, 2),
    "qwen2": (151936, 4096, 22016, 32, 32, 32, 32768, None),
    "qwen3": (151936, 4096, 22016, 32, 32, 32, 32768, None),
    "phi3": (32064, 3072, 8192, 32, 32, None, 4096, 32000),
    "smollm3": (128256, 2048, 11008, 36, 16, 4, 32768, 128001),
    "gemma": (256000, 3072, 24576, 28, 16, 16, 8192, 1),
    "gemma3_text": (262208, 2304, 9216, 26, 8, 4, 131072, 1),
    "granite": (32000, 4096, 11008, 32, 32, None, 2048, 2),
}
"""By family, what a config means that leaves one of ``_SIZES`` out."""
_OTHER_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128},
    "phi3": {"rms_norm_eps": 1e-5},
    "smollm3": {"tie_word_embeddings": True},
    "gemma": {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True},
}
"""The same for fields in which most families agree."""
DEFAULTS: dict[str, dict[str, Any]] = {
    family: dict(zip(_SIZES, sizes, strict=True)) | _OTHER_DEFAULTS.get(family, {})
    for family, sizes in _DEFAULT_SIZES.items()
}
_SLIDING_BY_DEFAULT = {"mistral": 4096, "qwen2": 4096, "qwen3": 4096, "gemma3_text": 4096}
_TYPED_LAYERS = ("qwen2", "qwen3", "smollm3", "gemma3_text")
"""Families whose config says of each block which attention it has."""
_NULLABLE_HEADS = ("llama", "qwen2", "qwen3", "phi3", "smollm3", "granite")
"""Families in which ``num_key_value_heads`` may be null: as many as there are heads."""
_DERIVED_HEAD_DIM = ("llama", "mistral")
"""Families in which ``head_dim`` may be null; in others it is left out or a number."""
_ROPE_KEYS: dict[RopeType, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "llama3": frozenset(
        {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    ),
    "yarn": frozenset(
        {"factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
        | {"original_max_position_embeddings"}
    ),
}
_ROPE_ALWAYS = frozenset({"rope_type", "type", "rope_theta", "partial_rotary_factor"})
# With any of these a model computes something else than Llama's shape does, or is read from elsewhere.
_FOREIGN = frozenset(
    {"attention_chunk_size", "attn_logit_softcapping", "configuration_files", "decoder", "generator"}
    | {
        "final_logit_softcapping",
        "kv_sharing_modes",
        "per_layer_config",
        "quantization_config",
        "text_config",
    }
)
_FOREIGN_FLAGS = frozenset({"is_encoder_decoder", "use_bidirectional_attention"})
_NOTHING = type(None)
_IDLE: dict[str, tuple[type, ...]] = {
    "attention_dropout": (int, float),
    "bos_token_id": (int, _NOTHING),
    "embd_pdrop": (int, float),
    "initializer_range": (float,),
    "max_window_layers": (int,),
    "no_rope_layer_interval": (int,),
    "original_max_position_embeddings": (int,),
    "pad_token_id": (int, _NOTHING),
    "pretraining_tp": (int, _NOTHING),
    "resid_pdrop": (int, float),
    "use_cache": (bool,),
}
"""Fields that change nothing that we compute, with the types without which transformers refuses them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeParameters:
    """Rotary positions of one kind of block; fields and names are those of transformers."""

    rope_type: RopeType
    rope_theta: float
    rotary: int
    """Elements of a head that turn."""
    factor: float = 1.0
    original_max_position_embeddings: float = 0
    low_freq_factor: float = 0
    high_freq_factor: float = 0
    attention_factor: float | None = None
    beta_fast: float = 32
    beta_slow: float = 1
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """A config with every default filled in; fields and names are those of transformers."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    hidden_act: str
    max_position_embeddings: int
    rms_norm_eps: float
    eos_token_ids: tuple[int, ...]
    tie_word_embeddings: bool
    dtype: str | None
    """As torch names it; ``None`` where the config does not say."""
    attention_bias: bool
    mlp_bias: bool
    sliding_window: int | None
    layer_types: tuple[str, ...]
    """Of each block, ``full_attention`` or ``sliding_attention``."""
    no_rope_layers: tuple[bool, ...]
    """Of each block, whether its positions are rotary (SmolLM3 says so under this name)."""
    ropes: Mapping[str, RopeParameters]
    """By the type of the block."""
    query_pre_attn_scalar: int
    embedding_multiplier: float
    logits_scaling: float
    residual_multiplier: float
    attention_multiplier: float | None
    """``None`` where scores are scaled by the size of a head."""
    mrope_section: Sections | None
    """Where rows of pictures have three positions."""


class _NotUnderstood(Exception):
    """Something about a config that only transformers can judge."""


def read_llama_config(config: Mapping[str, Any]) -> LlamaConfig | None:
    """What a parsed ``config.json`` says, or ``None`` when it is of another shape or not fully understood."""
    family = config.get("model_type")
    if family not in DEFAULTS:
        return None
    try:
        return _read(_Fields(config, str(family)))
    except (_NotUnderstood, ArithmeticError, LookupError):
        return None


class _Fields:
    """A config's values, each checked to be of the one type that a well-made config has there."""

    def __init__(self, given: Mapping[str, Any], family: str) -> None:
        self.given = given
        self.family = family

    def value(self, name: str, default: object = None) -> Any:
        return self.given.get(name, DEFAULTS[self.family].get(name, default))

    def size(self, name: str, default: object = None) -> int:
        return _size(self.value(name, default))

    def flag(self, name: str, default: object = False) -> bool:
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise _NotUnderstood(name)
        return value

    def multiplier(self, name: str) -> float:
        return _number(self.value(name, 1.0)) if self.family == "granite" else 1.0


def _read(fields: _Fields) -> LlamaConfig:
    _check_rest(fields.given)
    n_blocks, heads = fields.size("num_hidden_layers"), fields.size("num_attention_heads")
    head_dim, kv_heads = _head_dim(fields, heads), _kv_heads(fields, heads)
    if heads % kv_heads or head_dim % 2:
        raise _NotUnderstood
    epsilon = fields.value("rms_norm_eps", 1e-6)
    if not isinstance(epsilon, float):
        raise _NotUnderstood
    rotary = _rotary_layers(fields, n_blocks)
    sliding = _sliding_window(fields)
    layer_types = _layer_types(fields, n_blocks, rotary, sliding)
    granite = fields.family == "granite"
    return LlamaConfig(
        model_type=fields.family,
        vocab_size=fields.size("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=n_blocks,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        hidden_act=_activation(fields),
        max_position_embeddings=fields.size("max_position_embeddings"),
        rms_norm_eps=_number(epsilon),
        eos_token_ids=_token_ids(fields.value("eos_token_id", 2)),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        dtype=_dtype(fields),
        attention_bias=fields.flag("attention_bias"),
        mlp_bias=fields.flag("mlp_bias"),
        sliding_window=sliding,
        layer_types=layer_types,
        no_rope_layers=rotary,
        ropes=_ropes(fields, head_dim, layer_types),
        query_pre_attn_scalar=fields.size("query_pre_attn_scalar", 256),
        embedding_multiplier=fields.multiplier("embedding_multiplier"),
        logits_scaling=fields.multiplier("logits_scaling"),
        residual_multiplier=fields.multiplier("residual_multiplier"),
        attention_multiplier=fields.multiplier("attention_multiplier") if granite else None,
        mrope_section=_sections(fields, head_dim),
    )


def _check_rest(given: Mapping[str, Any]) -> None:
    """What is not read: nothing of it makes another model, or one that transformers would refuse."""
    foreign = [name for name in given.keys() & _FOREIGN if given[name] is not None]
    flags = [
        name for name in given.keys() & _FOREIGN_FLAGS if given[name] is not None and given[name] is not False
    ]
    if foreign or flags:
        raise _NotUnderstood
    for name in given.keys() & _IDLE:
        value = given[name]
        if type(value) not in _IDLE[name] or (isinstance(value, float) and not 0 <= value <= 1):
            raise _NotUnderstood
    if not all(str(label).isdecimal() for label in _mapping(given.get("id2label"))):
        raise _NotUnderstood


def _head_dim(fields: _Fields, heads: int) -> int:
    hidden = fields.size("hidden_size")
    if fields.family in ("llama", "gemma3_text") and hidden % heads:
        raise _NotUnderstood
    value = fields.value("head_dim")
    if value is None:
        if "head_dim" in fields.given and fields.family not in _DERIVED_HEAD_DIM:
            raise _NotUnderstood
        return _size(hidden // heads)
    return _size(value)


def _kv_heads(fields: _Fields, heads: int) -> int:
    value = fields.value("num_key_value_heads")
    if value is None and fields.family in _NULLABLE_HEADS:
        return heads
    return _size(value)


def _activation(fields: _Fields) -> str:
    name = "hidden_activation" if fields.family == "gemma3_text" else "hidden_act"
    value = fields.given.get(name, fields.value("hidden_act", "silu"))
    if not isinstance(value, str):
        raise _NotUnderstood
    # Gemma's first configs say "gelu" and mean the approximation.
    return "gelu_pytorch_tanh" if fields.family == "gemma" and value == "gelu" else value


def _dtype(fields: _Fields) -> str | None:
    value = fields.given.get("dtype")
    value = fields.given.get("torch_dtype") if value is None else value
    if value not in (None, "float32", "bfloat16", "float16"):
        raise _NotUnderstood
    return cast("str | None", value)


def _rotary_layers(fields: _Fields, n_blocks: int) -> tuple[bool, ...]:
    if fields.family != "smollm3":
        return (True,) * n_blocks
    given = fields.given.get("no_rope_layers")
    if given is None:
        interval = fields.value("no_rope_layer_interval", 4)
        return tuple((block + 1) % interval != 0 for block in range(n_blocks))
    if not isinstance(given, list) or len(cast("list[object]", given)) != n_blocks:
        raise _NotUnderstood
    layers = cast("list[object]", given)
    if not all(type(layer) is int for layer in layers):
        raise _NotUnderstood
    return tuple(bool(layer) for layer in layers)


def _sliding_window(fields: _Fields) -> int | None:
    value = fields.given.get("sliding_window", _SLIDING_BY_DEFAULT.get(fields.family))
    if fields.family in ("qwen2", "qwen3", "smollm3") and not fields.flag("use_sliding_window"):
        return None
    if value is None:
        return None
    if fields.family in ("llama", "gemma", "granite"):  # their blocks have none, but their caches might
        raise _NotUnderstood
    return _size(value)


def _layer_types(
    fields: _Fields, n_blocks: int, rotary: tuple[bool, ...], sliding: int | None
) -> tuple[str, ...]:
    given = fields.given.get("layer_types")
    if given is None:
        slides = _slides(fields, n_blocks, rotary, sliding)
        return tuple("sliding_attention" if slide else "full_attention" for slide in slides)
    if fields.family not in _TYPED_LAYERS or not isinstance(given, list):
        raise _NotUnderstood
    types = tuple(cast("list[object]", given))
    known = ("full_attention", "sliding_attention") if sliding else ("full_attention",)
    if len(types) != n_blocks or not all(kind in known for kind in types):
        raise _NotUnderstood
    return cast("tuple[str, ...]", types)


def _slides(fields: _Fields, n_blocks: int, rotary: tuple[bool, ...], sliding: int | None) -> list[bool]:
    """Whether each block's attention has a window, where the config does not say it block by block."""
    if fields.family == "gemma3_text":
        pattern = fields.size("sliding_window_pattern", 6)
        slides = [bool((block + 1) % pattern) for block in range(n_blocks)]
        if any(slides) and sliding is None:
            raise _NotUnderstood
        return slides
    if sliding is None:
        return [False] * n_blocks
    if fields.family in ("qwen2", "qwen3"):
        first = fields.value("max_window_layers", 28)
        return [block >= first for block in range(n_blocks)]
    if fields.family == "smollm3":
        return [not turned for turned in rotary]
    return [True] * n_blocks


def _ropes(fields: _Fields, head_dim: int, layer_types: tuple[str, ...]) -> dict[str, RopeParameters]:
    """By the type of block, of those that there are."""
    scaling, parameters = (_mapping(fields.given.get(name)) for name in ("rope_scaling", "rope_parameters"))
    theta = fields.given.get("rope_theta", 2e6 if fields.family == "smollm3" else 1e4)
    kinds = dict.fromkeys(layer_types)
    if fields.family != "gemma3_text":
        rope = _rope(fields, scaling or parameters, theta, head_dim)
        return dict.fromkeys(kinds, rope)
    if parameters.keys() - {"full_attention", "sliding_attention"}:
        raise _NotUnderstood
    if scaling and fields.given.get("rope_parameters") is not None:
        raise _NotUnderstood  # the old spelling and the new one at once
    full, local = (_mapping(parameters.get(kind)) for kind in ("full_attention", "sliding_attention"))
    global_theta = fields.given.get("rope_theta", 1e6)
    local_theta = fields.given.get("rope_local_base_freq", 1e4)
    found = {
        "full_attention": _rope(fields, full | scaling, global_theta, head_dim),
        "sliding_attention": _rope(fields, local, local_theta, head_dim),
    }
    return {kind: found[kind] for kind in kinds}


def _rope(fields: _Fields, given: Mapping[str, Any], theta: object, head_dim: int) -> RopeParameters:
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in get_args(RopeType) or (fields.family == "phi3" and kind != "default"):
        raise _NotUnderstood
    keys = _ROPE_KEYS[kind]
    if given.keys() - keys - _ROPE_ALWAYS:
        raise _NotUnderstood
    values: dict[str, Any] = {name: given[name] for name in keys if given.get(name) is not None}
    truncate = values.pop("truncate", True)
    if not isinstance(truncate, bool) or (fields.family == "gemma3_text" and not truncate):
        raise _NotUnderstood
    if "original_max_position_embeddings" in keys:
        if fields.given.get("original_max_position_embeddings") is not None:
            raise _NotUnderstood  # beside the parameters; which of the two counts, depends
        values.setdefault("original_max_position_embeddings", fields.size("max_position_embeddings"))
    needed = keys & {"factor", "low_freq_factor", "high_freq_factor"}
    if needed - values.keys():
        raise _NotUnderstood
    numbers = {name: _number(value) for name, value in values.items()}
    if kind == "llama3" and numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise _NotUnderstood
    base = _number(given.get("rope_theta", theta))
    if base <= 1:
        raise _NotUnderstood
    return RopeParameters(
        rope_type=kind,
        rope_theta=base,
        rotary=_rotary(fields, given, head_dim),
        truncate=truncate,
        **numbers,
    )


def _rotary(fields: _Fields, given: Mapping[str, Any], head_dim: int) -> int:
    """Elements of a head that turn: all of them but for some of Phi's."""
    share = given.get("partial_rotary_factor", fields.given.get("partial_rotary_factor", 1.0))
    rotary = int(head_dim * _number(share))
    if rotary % 2 or not 0 < rotary <= head_dim or (fields.family != "phi3" and rotary != head_dim):
        raise _NotUnderstood
    return rotary


def _sections(fields: _Fields, head_dim: int) -> Sections | None:
    given = fields.given.get(MROPE_SECTIONS)
    return None if given is None or fields.family != "qwen2" else read_sections(given, head_dim)


def _token_ids(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = tuple(cast("list[object]", value)) if isinstance(value, list) else (value,)
    if not all(type(token) is int for token in ids):
        raise _NotUnderstood
    return cast("tuple[int, ...]", ids)


def _mapping(value: object) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _NotUnderstood
    return cast("dict[str, Any]", value)


def _size(value: object) -> int:
    if type(value) is not int or not 0 < value < 2**31:
        raise _NotUnderstood
    return value


def _number(value: object) -> float:
    """A number above 0, as it is: a whole one stays whole, since its float may round another way."""
    if type(value) not in (int, float) or not math.isfinite(cast(float, value)) or cast(float, value) <= 0:
        raise _NotUnderstood
    return cast(float, value)
