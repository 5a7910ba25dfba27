"""``adapter_config.json`` as PEFT writes it: what of it we compute, and what we refuse by its name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.adapters.adapter import MAX_RANK
from shoal.models.checkpoint.json_file import SizeLimit, read_object

CONFIG = "adapter_config.json"
LIMIT = SizeLimit(1 << 20, 50_000)
TASKS = (None, "CAUSAL_LM", "FEATURE_EXTRACTION")
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",  # how it was begun, as the three below
        "eva_config",
        "loftq_config",
        "lora_ga_config",
        "ensure_weight_tying",
        "exclude_modules",
        "fan_in_fan_out",  # how the layer under it keeps its weights
        "inference_mode",
        "init_lora_weights",
        "layers_pattern",  # which layers have tensors shows which were chosen
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",  # of training alone
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",  # of use_qalora alone
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
        "velora_config",  # of training alone
    }
)
"""What does not change what an adapter adds, or is read here. All else is refused unless it says no."""
BEGUN = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin an adapter that leave the model's weights as they are; others change them (PiSSA, OLoRA)."""


def read_scale(folder: Path) -> float:
    """By what an adapter's part is multiplied, of a folder as PEFT writes it.

    Raises:
        BadWeights: the file is missing, damaged or says what cannot be.
        UnsupportedModel: it asks for what is not computed here; names it.
    """
    path = folder / CONFIG
    if not path.exists():
        raise BadWeights(
            f"{folder} is no adapter: it has no {CONFIG}",
            check="give the folder that PEFT's save_pretrained has written",
        )
    config = read_object(path, LIMIT)
    _refuse_others(path, config)
    rank, alpha = config.get("r"), config.get("lora_alpha", 8)
    if type(rank) is not int or rank < 1:
        raise BadWeights(f"{path}: r is {_shown(rank)}, not a rank", check="fetch the file again")
    if rank > MAX_RANK:
        raise UnsupportedModel(f"{path}: r is {rank}, and ranks up to {MAX_RANK} are supported")
    if type(alpha) not in (int, float) or not 0 < alpha < 1e6:
        raise BadWeights(f"{path}: lora_alpha is {_shown(alpha)}", check="fetch the file again")
    rooted = config.get("use_rslora")
    if not (rooted is None or isinstance(rooted, bool)):  # PEFT would take 1 for yes
        raise BadWeights(
            f"{path}: use_rslora is {_shown(rooted)}", check="write true or false, or fetch it again"
        )
    return float(alpha) / (math.sqrt(rank) if rooted else rank)


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("peft_type") == "PROMPT_TUNING":
        raise UnsupportedModel(
            f"{path}: it is a soft prompt, which who asks puts before each prompt: nodes need nothing",
            check="give it to who asks: --soft-prompt for shoal run, chat and gateway",
            next_command=f"shoal run MODEL:{path.parent.name} --soft-prompt {path.parent}",
        )
    if config.get("peft_type") != "LORA":
        raise _refused(path, "peft_type", config.get("peft_type"), "adapters of the type LORA are supported")
    if config.get("task_type") not in TASKS:
        raise _refused(path, "task_type", config["task_type"], "CAUSAL_LM is supported")
    if config.get("bias", "none") != "none":
        raise _refused(path, "bias", config["bias"], "adapters that leave biases as they are are supported")
    if config.get("init_lora_weights") not in BEGUN:
        begun = config["init_lora_weights"]
        raise _refused(path, "init_lora_weights", begun, "it changes the model's own weights too")
    for name, value in config.items():
        if name not in HARMLESS and name != "bias" and value:
            raise _refused(path, name, value, "it is not supported")


def _refused(path: Path, name: str, value: object, why: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{path}: {name[:80]} is {_shown(value)}: {why}",
        check="train a plain LoRA adapter, or merge this one into its model with PEFT and serve that",
    )


def _shown(value: object) -> str:
    return repr(value)[:80]
