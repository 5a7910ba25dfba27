"""Models that do more than text, of which the language part is served as a causal LM of its own.

Of some a client also runs the tower that looks at pictures (:mod:`shoal.models.vision`); of the others it is
left out, and they are asked for text alone.

Their configs are nested and their tensors lie beside those of towers for images or sound. Without an image
the whole model computes what the language part alone does; for the families here tests show that, bit for
bit. Others look back at the prompt (PaliGemma), or have no text model in transformers (Qwen2-VL), and are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from shoal.errors import StepFailed

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
    r"^(?:language_model\.model|model\.language_model|model\.text_model|language_model|text_model)\."
)
"""What the names of the language part's tensors begin with, in checkpoints of one age or another."""
_HEAD = re.compile(r"^(?:language_model\.|model\.)?lm_head\.")


CLIP, SIGLIP = "clip_vision_model", "siglip_vision_model"
TOWERS: dict[str, tuple[str, ...]] = {"gemma3": (SIGLIP,), "llava": (CLIP, SIGLIP)}
"""Model types whose pictures a client looks at, and the types of tower that they may have, the first of which
is meant where the config does not say. All their pictures become as many rows."""


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
    nested, text = SERVED.get(str(config.get("model_type"))), config.get("text_config")
    return nested is not None and isinstance(text, dict) and text.get("model_type", nested.text) in PLAIN


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
    return {name: value for name, value in config.items() if not is_nested(config) or name in _OF_LANGUAGE}


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text part of a nested config as that of a model of its own; what the whole says goes before."""
    nested = SERVED[config["model_type"]]
    text: dict[str, Any] = {"model_type": nested.text} | config["text_config"]
    tied = config.get("tie_word_embeddings", config.get("tie_embedding", nested.tied))
    if nested.tied is not None or tied:
        text["tie_word_embeddings"] = tied
    if config.get("eos_token_id") is not None:
        text["eos_token_id"] = config["eos_token_id"]
    for name in ("dtype", "torch_dtype"):
        if name in config:
            text.setdefault(name, config[name])
    return text
