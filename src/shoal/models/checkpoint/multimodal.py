"""Models that do more than text, of which the language part is served as a causal LM of its own.

Of some a client also runs the tower that looks at pictures (:mod:`shoal.models.vision`); of the others it is
left out, and they are asked for text alone.

Their configs are nested and their tensors lie beside those of towers for images or sound. Without an image
the whole model computes what the language part alone does; for the families here tests show that, bit for
bit. Others look back at the prompt (PaliGemma), and are refused. The text part of Qwen2-VL is a Qwen2, whose
rows of pictures have three positions (:mod:`shoal.models.checkpoint.mrope`); its older configs are not nested
and say all on top.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from shoal.errors import StepFailed
from shoal.models.checkpoint.mrope import MROPE_SECTIONS, read_sections

if TYPE_CHECKING:
    from shoal.models.checkpoint.headers import TensorEntry

_Tensor = TypeVar("_Tensor")
Stretches: TypeAlias = "tuple[tuple[int, int], ...]"
"""Positions, from the first up to the second, of tokens that all see each other."""


@dataclass(frozen=True, slots=True)
class Nested:
    """What a nested config means that does not say it."""

    text: str
    """The text part's model type."""
    tied: bool | None
    """Whether the head is the embedding; ``None``: as the text part says."""
    also: str = ""
    """The type that the text part has where it is nested, of one that is served as ``text``."""


SERVED: dict[str, Nested] = {
    "gemma3": Nested("gemma3_text", True),
    "idefics3": Nested("llama", False),
    "internvl": Nested("qwen2", True),
    "lfm2_vl": Nested("lfm2", True),
    "llama4": Nested("llama4_text", False),
    "llava": Nested("llama", None),
    "llava_next": Nested("llama", False),
    "llava_onevision": Nested("qwen2", None),
    "mistral3": Nested("mistral", True),
    "qwen2_5_vl": Nested("qwen2", None, "qwen2_5_vl_text"),
    "qwen2_vl": Nested("qwen2", None, "qwen2_vl_text"),
    "qwen3_5": Nested("qwen3_5_text", False),
    "qwen3_5_moe": Nested("qwen3_5_moe_text", False),
    "smolvlm": Nested("llama", False),
}
"""Model types whose text part is served."""
PLAIN = frozenset({"gpt_oss", "llama", "mistral", "qwen2", "qwen3", "qwen3_moe"}) | {
    n.text for n in SERVED.values()
}
"""Types of a text part whose logits are its head's alone: whole models leave out what others do to them."""
_LANGUAGE = re.compile(
    r"^(?:language_model\.model|model\.language_model|model\.text_model|language_model|text_model"
    r"|model(?=\.(?:embed_tokens|layers|norm)\.))\."
)
"""What the names of the language part's tensors begin with, in checkpoints of one age or another."""
_HEAD = re.compile(r"^(?:language_model\.|model\.)?lm_head\.")


CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
TOWERS: dict[str, tuple[str, ...]] = {
    "gemma3": (SIGLIP,),
    "llava": (CLIP, SIGLIP),
    "qwen2_5_vl": ("qwen2_5_vl_vision", "qwen2_5_vl"),
    "qwen2_vl": ("qwen2_vl_vision", "qwen2_vl"),
}
"""Model types whose pictures a client looks at, and the types of tower that they may have, the first of which
is meant where the config does not say."""
MROPE = frozenset({"qwen2_5_vl", "qwen2_vl"})
"""Those of which a picture's shape says how many rows it has, and rows have three positions."""
_MROPE_DEFAULTS: dict[str, Any] = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "max_window_layers": 80,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}
"""What their configs mean that leave a field out, where a Qwen2's mean something else."""
_MROPE_THETA, _MROPE_SECTIONS = 1e6, [16, 24, 24]


MUTUAL = frozenset({"gemma3_text"})
"""Types of a text part whose blocks let the rows of a picture see each other, and not only those before."""


def check_stretches(family: str, mutual: Stretches) -> None:
    """Raises StepFailed: tokens are to see each other that do not in a model of this family."""
    if mutual and family not in MUTUAL:
        raise StepFailed(f"no tokens of a {family} model see those behind them")


@dataclass(frozen=True, slots=True)
class TowerPart:
    """What of a checkpoint makes rows of pictures."""

    config: dict[str, Any]
    """Of the whole model: the tower's is in it."""
    tensors: Mapping[str, TensorEntry]
    """The tower's and the projector's, by their names in the files."""


_OF_LANGUAGE = frozenset(
    {
        *("model_type", "text_config", "tie_word_embeddings", "tie_embedding", "eos_token_id"),
        *("tokenizer_class", "quantization_config", "compression_config"),
    }
)
"""Fields of a nested config that are read where the language part alone is served."""


def is_nested(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` is of a model whose text part is served."""
    nested, text = SERVED.get(str(config.get("model_type"))), _text_part(config)
    if nested is None or text is None:
        return False
    return text.get("model_type", nested.text) in (PLAIN if not nested.also else (nested.also, nested.text))


def _text_part(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a config says of the text part; older ones of some types say it on top."""
    text = config.get("text_config")
    if isinstance(text, dict):
        return cast("dict[str, Any]", text)
    if text is not None or config.get("model_type") not in MROPE:
        return None
    return {name: value for name, value in config.items() if name not in ("model_type", "vision_config")}


def has_tower(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` is of a model whose pictures a client looks at."""
    kinds, vision = TOWERS.get(str(config.get("model_type"))), config.get("vision_config")
    if kinds is None or not is_nested(config) or not isinstance(vision, dict):
        return False
    return cast("dict[str, Any]", vision).get("model_type", kinds[0]) in kinds


def tower_tensors(tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """What is not of the language part."""
    return {name: tensor for name, tensor in tensors.items() if not is_of_language(name)}


def is_of_language(name: str) -> bool:
    """Whether a nested model's tensor is of its language part."""
    return _HEAD.match(name) is not None or _LANGUAGE.match(name) is not None


def text_tensors(tensors: Mapping[str, _Tensor]) -> dict[str, _Tensor]:
    """The language part's tensors alone, by the names that its own class has for them."""
    found: dict[str, _Tensor] = {}
    for name, tensor in tensors.items():
        head = _HEAD.match(name)
        language = None if head else _LANGUAGE.match(name)
        if head is not None:
            found[f"lm_head.{name[head.end() :]}"] = tensor
        elif language is not None:
            found[f"model.{name[language.end() :]}"] = tensor
    return found


def language_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is said of towers alone: of a nested one, what the language part is made by."""
    if not is_nested(config):
        return dict(config)
    if not isinstance(config.get("text_config"), dict):  # all is said on top
        return {name: value for name, value in config.items() if name != "vision_config"}
    return {name: value for name, value in config.items() if name in _OF_LANGUAGE}


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text part of a nested config as that of a model of its own; what the whole says goes before."""
    nested = SERVED[config["model_type"]]
    text: dict[str, Any] = {"model_type": nested.text, **(_text_part(config) or {})}
    if nested.also:
        text = _MROPE_DEFAULTS | text | {"model_type": nested.text} | _rotary(text)
    tied = config.get("tie_word_embeddings", config.get("tie_embedding", nested.tied))
    if nested.tied is not None or tied:
        text["tie_word_embeddings"] = tied
    if config.get("eos_token_id") is not None:
        text["eos_token_id"] = config["eos_token_id"]
    for name in ("dtype", "torch_dtype"):
        if name in config:
            text.setdefault(name, config[name])
    return text


def sections_fit(text: Mapping[str, Any]) -> bool:
    """Whether the sections that a text part's config says, if any, are those of half a head."""
    dims, heads = text.get("head_dim"), text.get("num_attention_heads")
    if dims is None and isinstance(heads, int) and heads > 0 and isinstance(text.get("hidden_size"), int):
        dims = text["hidden_size"] // heads
    return MROPE_SECTIONS not in text or read_sections(text[MROPE_SECTIONS], dims) is not None


def _rotary(text: Mapping[str, Any]) -> dict[str, Any]:
    """What an M-RoPE model's text part says of rotary positions, as a Qwen2 says it; sections have a field of
    their own."""
    given = text.get("rope_scaling") or text.get("rope_parameters") or {}
    scaling: dict[str, Any] = {"rope_theta": text.get("rope_theta", _MROPE_THETA)}
    scaling |= cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    sections = scaling.pop(MROPE_SECTIONS, _MROPE_SECTIONS)
    kind = scaling.pop("type", "default")
    kind = scaling.get("rope_type", kind)
    scaling["rope_type"] = "default" if kind == "mrope" else kind
    return {"rope_parameters": scaling, "rope_scaling": None, MROPE_SECTIONS: sections}
