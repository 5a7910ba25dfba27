"""A span whose large matrices are split over several processes: tensor parallelism, by the family's own plan.

Transformers does the splitting: told of the plan before it loads, its loader reads of each tensor only the
part of this process, and the layers of the plan are given what adds the parts up over torch.distributed.
What is ours is to say which models can be split in how many parts, and to leave out of the plan what is not
in the span. (Shoeybi et al., "Megatron-LM", 2019.)
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig, PreTrainedModel

from shoal.errors import UnsupportedModel, UsageError

SPLIT = "colwise"
"""The style of a layer of which each process computes some outputs and keeps them: here, whole heads."""
INSTEAD = "several nodes that serve the same span share its sessions"


def check_split(config: PretrainedConfig, processes: int) -> None:
    """Find out whether a model's blocks can be split over so many processes.

    Raises:
        UnsupportedModel: transformers has no plan for the family.
        UsageError: the heads, or the widths, cannot be shared out evenly.
    """
    plan = cast("dict[str, str] | None", config.base_model_tp_plan)
    if not plan:
        raise UnsupportedModel(
            f"transformers has no plan to split a {config.model_type} model over processes",
            check=INSTEAD,
            next_command="shoal serve MODEL --parallel 1",
        )
    for what, count in _shared_out(config, plan).items():
        if count % processes:
            raise UsageError(
                f"{count} {what} cannot be shared out to {processes} processes",
                check=f"--parallel must divide {count}; or {INSTEAD}",
                next_command="shoal serve MODEL --parallel 1",
            )


def _shared_out(config: PretrainedConfig, plan: dict[str, str]) -> dict[str, int]:
    """What each process needs a whole share of, with how many there are in all."""
    counts: dict[str, int] = {}
    attention = {style for name, style in plan.items() if "attn" in name or "attention" in name}
    if SPLIT in attention:
        heads = int(config.num_attention_heads)
        counts["attention heads"] = heads
        counts["key and value heads"] = int(getattr(config, "num_key_value_heads", None) or heads)
    widths = ("moe_intermediate_size", "intermediate_size")
    if "packed_colwise" in plan.values():
        width = next((getattr(config, name) for name in widths if getattr(config, name, None)), None)
        if isinstance(width, int):
            counts["rows of an expert's weights"] = width
    return counts


def keep_plan(model: PreTrainedModel, blocks: str) -> None:
    """Leave in the model's plan only what is under ``blocks``, for example ``model.layers``."""
    model.tp_plan = {name: style for name, style in model.tp_plan.items() if name.startswith(f"{blocks}.")}


def settle(model: PreTrainedModel) -> None:
    """Have the modules hold their parts as plain tensors, and forget who else has the others.

    The layers of the plan need no more, a forward is spared the unwrapping, and the model can be copied, as
    parts of a span are.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():  # pyright: ignore[reportPrivateUsage]
            if isinstance(parameter, DTensor):
                module._parameters[name] = nn.Parameter(  # pyright: ignore[reportPrivateUsage]
                    parameter.to_local().detach(), requires_grad=False
                )
    model._device_mesh = model._mesh_manager = None  # pyright: ignore[reportPrivateUsage]
