"""What a run of tuning writes: the adapter as PEFT reads it, and all that is needed to go on after a kill.

Everything is written into a folder beside and then takes the old one's place, so that one whole checkpoint is
always there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file

from shoal.client.tuning.factors import TunedAdapter
from shoal.errors import BadWeights, UsageError
from shoal.models.adapters.peft_config import CONFIG
from shoal.models.adapters.read import BASE_FILE, WEIGHTS
from shoal.models.checkpoint.json_file import SizeLimit, read_object
from shoal.types import Digest

STATE = "tuning.json"
OPTIMIZER = "optimizer.safetensors"
LIMIT = SizeLimit(64 << 20, 2_000_000)
NEW, OLD = ".new", ".old"


@dataclass(frozen=True, slots=True)
class TuningState:
    """How far a run has come."""

    step: int
    run: Mapping[str, Any]
    """What decides its numbers: another run does not go on with it."""
    history: tuple[tuple[int, float], ...]
    """Losses by step."""


def save(
    folder: Path,
    adapter: TunedAdapter,
    optimizer: torch.optim.Optimizer,
    state: TuningState,
    *,
    base: Digest,
    base_name: str,
) -> None:
    """Write a checkpoint in the place of the one in ``folder``. Raises OSError: the disk is full."""
    fresh, old = folder.with_name(folder.name + NEW), folder.with_name(folder.name + OLD)
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    named = adapter.named()
    save_file({name: half.detach() for name, half in named.items()}, fresh / WEIGHTS)
    moments: dict[str, torch.Tensor] = {}
    for name, half in named.items():
        for key, value in optimizer.state.get(half, {}).items():
            moments[f"{key} {name}"] = cast(torch.Tensor, value)
    save_file(moments, fresh / OPTIMIZER)
    said: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(adapter.layers.sizes),
        "inference_mode": True,
    }
    (fresh / CONFIG).write_text(json.dumps(said, indent=2) + "\n")
    (fresh / BASE_FILE).write_text(json.dumps({"base": base}) + "\n")
    run = {"step": state.step, "run": dict(state.run), "history": [list(pair) for pair in state.history]}
    (fresh / STATE).write_text(json.dumps(run) + "\n")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def check_is_of_tuning(folder: Path) -> None:
    """Refuse a folder that holds something else. Raises UsageError."""
    if folder.exists() and any(folder.iterdir()) and not (folder / STATE).exists():
        raise UsageError(
            f"{folder} holds something that is no checkpoint of shoal tune",
            check="name another folder: --out",
        )


def restore(
    folder: Path, adapter: TunedAdapter, optimizer: torch.optim.Optimizer, run: Mapping[str, Any]
) -> TuningState | None:
    """Go on from the checkpoint in ``folder``; ``None`` where there is none yet.

    Raises:
        UsageError: it is of a run with other settings, data or another model.
        BadWeights: it is damaged.
    """
    old = folder.with_name(folder.name + OLD)
    if not folder.exists() and old.exists():  # killed between the two renamings
        old.rename(folder)
    if not (folder / STATE).exists():
        return None
    said = read_object(folder / STATE, LIMIT)
    before = said.get("run")
    if before != dict(run):
        other = sorted(
            key
            for key in run
            if not isinstance(before, dict) or cast("dict[str, Any]", before).get(key) != run[key]
        )
        raise UsageError(
            f"{folder} has a checkpoint of another run: {', '.join(other) or 'its settings'} differ",
            check="name another folder with --out, or give what that run was given",
        )
    try:
        weights, moments = load_file(folder / WEIGHTS), load_file(folder / OPTIMIZER)
        for name, half in adapter.named().items():
            half.data.copy_(weights[name])
            state = {
                key.partition(" ")[0]: value
                for key, value in moments.items()
                if key.partition(" ")[2] == name
            }
            if state:
                optimizer.state[half] = state
        history = tuple((int(step), float(loss)) for step, loss in said["history"])
        return TuningState(int(said["step"]), run, history)
    except Exception as error:
        # The files are ours; whatever is wrong with them, they were cut or changed.
        raise BadWeights(
            f"{folder}: the checkpoint is damaged ({type(error).__name__}: {error})",
            check="remove the folder and tune anew, or restore it",
        ) from error
