"""The loader over several processes: each family's plan says which matrices are split, and how.

Relied on: ``base_model_tp_plan`` of a config and ``tp_plan`` of a model, which is by full names and may be
narrowed before the loader reads it; the styles below; that each process keeps its part as a ``DTensor``;
and that a forward needs the mesh no more once parameters are plain tensors.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import MethodType
from typing import cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import expect_members, relied_on
from shoal.models.seam.model import PreTrainedModel

with relied_on("plans to split a model"):
    expect_members(PreTrainedModel, "tp_plan")

OUTPUTS = "colwise"
"""The style of a layer of which each process computes some outputs and keeps them."""
EXPERT_OUTPUTS = "packed_colwise"
"""The same for experts, whose gate and up lie in one tensor."""
EXPERTS = "moe_tp_experts"
"""The style of experts of which each process computes a part of every one: their outputs are added up."""


def plan_of(config: PretrainedConfig) -> dict[str, str]:
    """The style of each layer of the blocks, by names such as ``layers.*.mlp.up_proj``.

    Empty for families without a plan, and for those whose plan splits their ends alone.
    """
    plan = cast("dict[str, str] | None", config.base_model_tp_plan) or {}
    return {name: style for name, style in plan.items() if "*" in name}


def keep_plan(model: PreTrainedModel, blocks: str) -> None:
    """Leave in the model's plan only what is under ``blocks``, for example ``model.layers``."""
    model.tp_plan = {name: style for name, style in model.tp_plan.items() if name.startswith(f"{blocks}.")}


def settle(model: PreTrainedModel) -> None:
    """Have the modules hold their parts as plain tensors, and forget who else has the others.

    The layers of the plan need no more, a forward is spared the unwrapping, and the model can be copied, as
    parts of a span are. Experts alone ask, in some versions, at each forward whether theirs are parts: their
    sum is taken here.
    """
    for path, module in model.named_modules():
        if model.tp_plan.get(re.sub(r"\.\d+(?=\.|$)", ".*", path)) == EXPERTS:
            module.forward = _summed(MethodType(type(module).forward, module))
        for name, parameter in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if isinstance(parameter, DTensor):
                module._parameters[name] = nn.Parameter(  # pyright: ignore[reportPrivateUsage]
                    parameter.to_local().detach(), requires_grad=False
                )
    model._device_mesh = model._mesh_manager = None  # pyright: ignore[reportPrivateUsage]


def _summed(forward: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def run(*args: object, **kwargs: object) -> torch.Tensor:
        out = forward(*args, **kwargs)
        dist.all_reduce(out)
        return out

    return run
