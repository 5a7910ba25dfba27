"""The forward of a sparse layer's experts, which can be ours, and what their module says of them.

Relied on: a function registered in ``ALL_EXPERTS_FUNCTIONS`` under the name that a config holds takes the
place of every experts module's forward: it is given the module, the hidden states ``[n, width]``, which
experts each token chose and how much each counts, ``[n, k]``. The module says ``has_gate``, ``has_bias``,
``has_post_expert_norm`` and ``is_transposed``, and has ``_apply_gate`` or ``act_fn``; its weights have the
names below and an expert's number for their first dimension.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import expect_arguments, expect_members, relied_on

with relied_on("experts"):
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, use_experts_implementation

    expect_members(ALL_EXPERTS_FUNCTIONS, "register")
    expect_arguments(
        use_experts_implementation, "is_transposed", "has_bias", "has_gate", "has_post_expert_norm"
    )

EXPERT_WEIGHTS = ("gate_up_proj", "up_proj", "down_proj")

RunExperts = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The module, hidden states, chosen experts and their weights, to hidden states."""


def register_experts(name: str, run: RunExperts) -> None:
    """Have ``run`` be the forward of experts wherever a config names it."""
    ALL_EXPERTS_FUNCTIONS.register(name, run)


def choose_experts(config: PretrainedConfig, name: str) -> None:
    """Name in a config which forward its experts have."""
    setattr(config, "_experts_implementation", name)  # noqa: B010 — as from_pretrained's argument


def are_experts(module: nn.Module) -> bool:
    """Whether a module holds experts whose forward can be chosen."""
    return hasattr(module, "has_gate") and hasattr(module, "is_transposed")
