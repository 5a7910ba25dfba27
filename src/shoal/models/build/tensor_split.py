"""A span whose large matrices are split over several processes: tensor parallelism, by the family's own plan.

Transformers does the splitting: told of the plan before it loads, its loader reads of each tensor only the
part of this process, and the layers of the plan are given what adds the parts up over torch.distributed.
What is ours is to say which models can be split in how many parts, and to leave out of the plan what is not
in the span. (Shoeybi et al., "Megatron-LM", 2019.)
"""

from __future__ import annotations

from shoal.errors import UnsupportedModel, UsageError
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.split import EXPERT_OUTPUTS, OUTPUTS, plan_of

INSTEAD = "start several nodes for the same span: they share its sessions"


def check_split(config: PretrainedConfig, processes: int) -> None:
    """Find out whether a model's blocks can be split over so many processes.

    Raises:
        UnsupportedModel: transformers has no plan for the family.
        UsageError: the heads, or the widths, cannot be shared out evenly.
    """
    plan = plan_of(config)
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
    if OUTPUTS in attention:  # of attention's, whole heads
        heads = int(config.num_attention_heads)
        counts["attention heads"] = heads
        counts["key and value heads"] = int(getattr(config, "num_key_value_heads", None) or heads)
    widths = ("moe_intermediate_size", "intermediate_size")
    if EXPERT_OUTPUTS in plan.values():
        width = next((getattr(config, name) for name in widths if getattr(config, name, None)), None)
        if isinstance(width, int):
            counts["rows of an expert's weights"] = width
    return counts
