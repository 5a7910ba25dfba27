"""Encoders: models that take in a whole text at once and give a vector for each of its tokens, but no text.

Each token sees all others, before and behind it, so nothing of a text can be kept for the next token: their
blocks are served without KV.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENCODERS = frozenset(
    {"bert", "camembert", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm-roberta"}
)
"""Model types for which tests show that spans of blocks give what the whole model does."""
OFFSET_POSITIONS = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})
"""Those whose positions begin after the padding token's id: they have so many fewer of them."""
POSITION_BIAS = "relative_attention_bias"
"""A table beside the blocks that each of them is given a part of: it belongs to every span."""


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` is of an encoder. One that was trained to generate text is none."""
    return config.get("model_type") in ENCODERS and not config.get("is_decoder")


def is_position_bias(tensor: str) -> bool:
    """Whether a tensor beside the blocks is one that they are computed with."""
    return f".{POSITION_BIAS}." in f".{tensor}"
