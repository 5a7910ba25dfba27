"""The forward of experts can be ours, and their module says how to read its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from shoal.models.seam.experts import EXPERT_WEIGHTS, are_experts, choose_experts, register_experts
from shoal.models.seam.model import causal_lm_class
from shoal.testing.checkpoints import FAMILIES

METHOD = "shoal-contract"
TOKENS = 3
SPARSE = ["mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3"]


@pytest.mark.parametrize("family", SPARSE)
def test_the_forward_that_a_config_names_is_called_for_every_sparse_layer(family: str) -> None:
    calls: list[tuple[Any, tuple[int, ...], tuple[int, ...]]] = []

    def run(experts: Any, hidden: torch.Tensor, chosen: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        assert chosen.shape == counts.shape and not chosen.is_floating_point()
        calls.append((experts, tuple(hidden.shape), tuple(chosen.shape)))
        return torch.zeros_like(hidden)

    register_experts(METHOD, run)
    config = FAMILIES[family]()
    choose_experts(config, METHOD)
    cls = causal_lm_class(config)
    assert cls is not None
    model = cls(config).eval()
    with torch.inference_mode():
        model(torch.tensor([[5, 6, 7]]))
    sparse = [module for module in model.modules() if are_experts(module)]
    assert sparse and [experts for experts, _, _ in calls] == sparse
    for _, hidden, chosen in calls:
        assert hidden == (TOKENS, 64) and chosen == (TOKENS, config.num_experts_per_tok)


@pytest.mark.parametrize("family", SPARSE)
def test_their_module_says_how_its_weights_lie(family: str) -> None:
    config = FAMILIES[family]()
    cls = causal_lm_class(config)
    assert cls is not None
    with torch.device("meta"):
        model = cls(config)
    experts: Any = next(module for module in model.modules() if are_experts(module))
    assert experts.has_gate and callable(experts._apply_gate)
    assert experts.is_transposed == experts.has_bias == (family == "gpt_oss")
    assert not experts.has_post_expert_norm
    weights = {name: weight for name, weight in experts.named_parameters() if name in EXPERT_WEIGHTS}
    assert set(weights) == {"gate_up_proj", "down_proj"}
    for name, weight in weights.items():
        inputs_at = 1 if experts.is_transposed else 2
        assert weight.dim() == 3 and (weight.shape[inputs_at] == 64) == (name == "gate_up_proj")


def test_other_modules_are_no_experts() -> None:
    assert not are_experts(torch.nn.Linear(2, 2))
