"""A family's plan says in which style each layer is split; what is not in the span is left out of it."""

from __future__ import annotations

import torch
from torch import nn

from shoal.models.seam.model import causal_lm_class
from shoal.models.seam.split import EXPERT_OUTPUTS, EXPERTS, OUTPUTS, keep_plan, plan_of, settle
from shoal.testing.checkpoints import FAMILIES

from .conftest import Built


def test_the_plan_names_layers_below_the_base_model_and_their_styles() -> None:
    plan = plan_of(FAMILIES["llama"]())
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        assert plan[f"layers.*.{name}"] == OUTPUTS
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        assert plan[f"layers.*.{name}"] == "rowwise"


def test_the_gate_and_up_of_experts_are_split_together() -> None:
    plan = plan_of(FAMILIES["mixtral"]())
    assert plan["layers.*.mlp.experts.gate_up_proj"] == EXPERT_OUTPUTS
    assert plan["layers.*.mlp.experts"] == EXPERTS


def test_families_without_a_plan_for_their_blocks_have_an_empty_one() -> None:
    assert plan_of(FAMILIES["gpt2"]()) == {}
    ends_alone = FAMILIES["lfm2"]()
    ends_alone.base_model_tp_plan = {"embed_tokens": "embedding_rowwise"}  # as since 5.24
    assert plan_of(ends_alone) == {}


def test_a_models_plan_is_by_full_names_and_can_be_narrowed() -> None:
    config = FAMILIES["llama_untied"]()
    cls = causal_lm_class(config)
    assert cls is not None
    with torch.device("meta"):
        model = cls(config)
    assert "model.layers.*.mlp.up_proj" in model.tp_plan and "lm_head" in model.tp_plan
    keep_plan(model, "model.layers")
    assert model.tp_plan and all(name.startswith("model.layers.") for name in model.tp_plan)


def test_a_model_that_is_not_split_is_as_it_was_once_settled(built: Built) -> None:
    model = built("llama")
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(tokens).logits
        settle(model)
        assert torch.equal(model(tokens).logits, before)
    assert all(type(parameter) is nn.Parameter for parameter in model.parameters())
