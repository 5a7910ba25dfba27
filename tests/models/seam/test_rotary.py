"""A rotary embedding says of which kind it is; only some kinds follow the length of the sequence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from shoal.models.seam.model import causal_lm_class
from shoal.models.seam.rotary import follows_length

from .conftest import Built

TRAINED = 32
"""Positions that the models were trained with."""

SCALED: dict[str, dict[str, Any]] = {
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": TRAINED,
        "factor": 4.0,
    },
}


def rotary(parameters: dict[str, Any]) -> nn.Module:
    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=8,
        vocab_size=8,
        max_position_embeddings=TRAINED,
        rope_parameters={"rope_theta": 10000.0} | parameters,
    )
    cls = causal_lm_class(config)
    assert cls is not None
    return cls(config).base_model.rotary_emb


def turned(rope: nn.Module, positions: list[int]) -> torch.Tensor:
    """The cosines of the first position, after all of them were given."""
    cosines, sines = rope(torch.zeros(1), torch.tensor([positions]))
    assert cosines.shape == sines.shape == (1, len(positions), 16)
    return cosines[0, 0]


@pytest.mark.parametrize("kind", SCALED)
def test_the_frequencies_follow_from_the_largest_position_and_a_short_sequence_has_its_own_again(
    kind: str,
) -> None:
    rope = rotary(SCALED[kind])
    assert follows_length(rope)
    short = turned(rope, [5, 6])
    assert not torch.equal(turned(rope, [5, 3 * TRAINED]), short)
    turned(rope, [0])
    assert torch.equal(turned(rope, [5, 6]), short)


def test_other_kinds_do_not_look_at_the_length() -> None:
    rope = rotary({"rope_type": "linear", "factor": 4.0})
    assert not follows_length(rope)
    assert torch.equal(turned(rope, [5, 3 * TRAINED]), turned(rope, [5, 6]))


def test_some_families_have_a_kind_for_each_type_of_block(built: Built) -> None:
    kinds: Any = built("gemma3").base_model.rotary_emb.rope_type
    assert kinds == {"sliding_attention": "default", "full_attention": "default"}
    assert not follows_length(built("gemma3").base_model.rotary_emb)


def test_what_is_no_rotary_embedding_follows_nothing() -> None:
    assert not follows_length(nn.Linear(2, 2))
