"""What a run of tuning writes: the adapter as PEFT reads it, and all that is needed to go on after a kill.

Everything is written into a hidden folder inside of the one that was named, and then moved out of it file by
file. A run that is killed in between moves the rest when it goes on, so that one whole checkpoint is always
there. Files that are not ours stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from safetensors.torch import save as serialized

from shoal.client.tuning.tuned import Tuned
from shoal.errors import BadWeights, UsageError
from shoal.models.adapters.peft_config import CONFIG
from shoal.models.adapters.read import BASE_FILE, WEIGHTS
from shoal.models.checkpoint.json_file import SizeLimit, read_object
from shoal.models.store.disk import told_if_full
from shoal.types import Digest

STATE = "tuning.json"
OPTIMIZER = "optimizer.safetensors"
LIMIT = SizeLimit(64 << 20, 2_000_000)
FILES = (WEIGHTS, OPTIMIZER, CONFIG, BASE_FILE, STATE)
"""Ours, and the only ones that are replaced."""
NEW = ".shoal-new"
"""Where the next checkpoint is written."""
MARKER = "shoal-tune"
"""In there: shows that the folder is ours, and whether all of it is written."""
MARKED = "shoal-tune.new"
"""What it becomes at one stroke when all is written."""
WRITING, WHOLE = "writing\n", "whole\n"


@dataclass(frozen=True, slots=True)
class TuningState:
    """How far a run has come."""

    step: int
    run: Mapping[str, Any]
    """What decides its numbers: another run does not go on with it."""
    history: tuple[tuple[int, float], ...]
    """Losses by step."""
    evaluations: tuple[tuple[int, float], ...] = ()
    """Losses over the examples that are kept back, by step."""


def save(
    folder: Path,
    adapter: Tuned,
    optimizer: torch.optim.Optimizer,
    state: TuningState,
    *,
    base: Digest,
    base_name: str,
) -> None:
    """Write a checkpoint in the place of the one in ``folder``.

    Raises:
        UsageError: something that is not ours is in the way.
        OutOfResources: the disk is full. The checkpoint that was there stays.
        OSError: it cannot be written.
    """
    named = adapter.named()
    moments: dict[str, torch.Tensor] = {}
    for name, half in named.items():
        for key, value in optimizer.state.get(half, {}).items():
            moments[f"{key} {name}"] = cast(torch.Tensor, value)
    run = {
        "step": state.step,
        "run": dict(state.run),
        "history": [list(pair) for pair in state.history],
        "evaluations": [list(pair) for pair in state.evaluations],
    }
    files = {
        WEIGHTS: serialized({name: half.detach() for name, half in named.items()}),
        OPTIMIZER: serialized(moments),
        CONFIG: _json(adapter.config(base_name), indent=2),
        BASE_FILE: _json({"base": base}),
        STATE: _json(run),
    }
    with told_if_full(folder, "the checkpoint", instead="name a folder on a larger disk with --out"):
        _replace(folder, files)


def _json(value: Mapping[str, Any], indent: int | None = None) -> bytes:
    return (json.dumps(value, indent=indent) + "\n").encode()


def _replace(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files beside those that are in their places, and then move all of them."""
    fresh = folder / NEW
    _clear(fresh)
    fresh.mkdir(parents=True)
    (fresh / MARKER).write_text(WRITING)
    for name, data in files.items():
        _write(fresh / name, data)
    (fresh / MARKED).write_text(WHOLE)
    (fresh / MARKED).replace(fresh / MARKER)
    _move_out(folder)


def _write(path: Path, data: bytes) -> None:
    """A file that is on the disk, also after a loss of power, before the marker says so."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def checkpoint_folder(folder: Path) -> Path:
    """Where a run writes, as a whole path. Raises UsageError: nothing can be written there."""
    try:
        found = folder.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"{folder} cannot be a folder ({error})", check="name another folder: --out"
        ) from error
    if found.is_symlink() or (found.exists() and not found.is_dir()):
        raise UsageError(f"{found} is no folder", check="name another folder: --out")
    return found


def check_is_of_tuning(folder: Path) -> None:
    """Refuse a folder that holds something else. Raises UsageError."""
    _check_ours(folder / NEW)  # now, and not when the first steps are to be saved
    if not folder.exists() or (folder / STATE).exists() or _written(folder / NEW) == WHOLE:
        return
    if any(path.name != NEW for path in folder.iterdir()):
        raise UsageError(
            f"{folder} holds something that is no checkpoint of shoal tune",
            check="name another folder: --out",
        )


def _written(fresh: Path) -> str | None:
    """What the marker of a folder says; ``None`` where the folder is not ours. One that is empty is."""
    try:
        return (fresh / MARKER).read_text()
    except (OSError, UnicodeDecodeError):
        return WRITING if fresh.is_dir() and not any(fresh.iterdir()) else None


def _check_ours(fresh: Path) -> None:
    """Raises UsageError: a run of tuning has not written this folder."""
    if fresh.is_symlink() or (fresh.exists() and _written(fresh) is None):
        raise UsageError(
            f"{fresh} is in the way, and shoal tune has not written it",
            check="move it away, or name another folder with --out",
        )


def _clear(fresh: Path) -> None:
    """Remove what a run that was killed has left behind. Raises UsageError: it is not ours."""
    _check_ours(fresh)
    if fresh.exists():
        for name in (*FILES, MARKED):  # the marker goes last: without it, the rest would be no more ours
            (fresh / name).unlink(missing_ok=True)
        shutil.rmtree(fresh)


def _move_out(folder: Path) -> None:
    """Put a checkpoint that is written as a whole in its place, or the rest of it."""
    fresh = folder / NEW
    for name in FILES:
        if (fresh / name).exists():
            (fresh / name).replace(folder / name)
    shutil.rmtree(fresh)


def restore(
    folder: Path, adapter: Tuned, optimizer: torch.optim.Optimizer, run: Mapping[str, Any]
) -> TuningState | None:
    """Go on from the checkpoint in ``folder``; ``None`` where there is none yet.

    Raises:
        UsageError: it is of a run with other settings, data or another model.
        BadWeights: it is damaged.
    """
    if _written(folder / NEW) == WHOLE:  # killed while it was moved
        _move_out(folder)
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
        history, evaluations = (
            tuple((int(step), float(loss)) for step, loss in curve)
            for curve in (said["history"], said.get("evaluations", ()))  # older checkpoints have no second
        )
        return TuningState(int(said["step"]), run, history, evaluations)
    except Exception as error:
        # The files are ours; whatever is wrong with them, they were cut or changed.
        raise BadWeights(
            f"{folder}: the checkpoint is damaged ({type(error).__name__}: {error})",
            check="remove the folder and tune anew, or restore it",
        ) from error
