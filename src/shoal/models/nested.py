"""Models that do more than text, of which the language part is served as a causal LM of its own.

Their configs are nested and their tensors lie beside those of towers for images or sound. Without an image
the whole model computes what the language part alone does; for the families here tests show that, bit for
bit. Others look back at the prompt (PaliGemma), or have no text model in transformers (Qwen2-VL), and are
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

Tensor = TypeVar("Tensor")

SERVED = frozenset(
    {
        "gemma3",
        "idefics3",
        "internvl",
        "lfm2_vl",
        "llama4",
        "llava",
        "llava_next",
        "llava_onevision",
        "mistral3",
        "qwen3_5",
        "qwen3_5_moe",
        "smolvlm",
    }
)
"""Model types whose text part is served."""
_LANGUAGE = re.compile(
    r"^(?:language_model\.model|model\.language_model|model\.text_model|language_model|text_model)\."
)
"""What the names of the language part's tensors begin with, in checkpoints of one age or another."""
_HEAD = re.compile(r"^(?:language_model\.|model\.)?lm_head\.")


def is_nested(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` is of a model whose text part is served."""
    return config.get("model_type") in SERVED and isinstance(config.get("text_config"), dict)


def text_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The language part's tensors alone, by the names that its own class has for them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        head = _HEAD.match(name)
        language = None if head else _LANGUAGE.match(name)
        if head is not None:
            found[f"lm_head.{name[head.end() :]}"] = tensor
        elif language is not None:
            found[f"model.{name[language.end() :]}"] = tensor
    return found


def text_part(config: Mapping[str, Any]) -> dict[str, Any]:
    """Of a nested config what decides the text: all but the configs of other parts."""
    return {k: v for k, v in config.items() if k == "text_config" or not isinstance(v, dict)}
