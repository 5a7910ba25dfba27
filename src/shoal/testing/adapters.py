"""Random adapters in PEFT's own format, for tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shoal.models.checkpoint.checkpoint import open_checkpoint


def write_adapter(
    folder: Path,
    checkpoint: Path,
    layers: Sequence[str],
    *,
    rank: int = 4,
    seed: int = 0,
    turned: bool = False,
    size: float = 0.2,
    **config: Any,
) -> Path:
    """Write an adapter that changes all linear layers of ``checkpoint`` with these last names.

    Args:
        turned: the model keeps its weights with inputs first, as GPT-2 does.
        size: of its elements; the larger, the more it changes.
        config: fields of ``adapter_config.json``.
    """
    chance = np.random.default_rng(seed)
    tensors: dict[str, Any] = {}
    for name, entry in open_checkpoint(checkpoint).tensors.items():
        path = name.removesuffix(".weight")
        if path != name and path.rpartition(".")[2] in layers and len(entry.shape) == 2:
            rows, cols = reversed(entry.shape) if turned else entry.shape
            for half, shape in (("A", (rank, cols)), ("B", (rows, rank))):
                drawn = chance.standard_normal(shape, np.float32) * np.float32(size)
                tensors[f"base_model.model.{path}.lora_{half}.weight"] = drawn
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": checkpoint.name,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": turned,
        "target_modules": list(layers),
    }
    (folder / "adapter_config.json").write_text(json.dumps(said | config))
    return folder


def write_soft_prompt(
    folder: Path, checkpoint: Path, *, rows: int = 4, seed: int = 0, size: float = 0.5
) -> Path:
    """Write a soft prompt for ``checkpoint``.

    Args:
        size: of its elements.
    """
    width = int(json.loads((checkpoint / "config.json").read_text())["hidden_size"])
    drawn = np.random.default_rng(seed).standard_normal((rows, width), np.float32) * np.float32(size)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"prompt_embeddings": drawn}, folder / "adapter_model.safetensors")
    said = {
        "peft_type": "PROMPT_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": checkpoint.name,
        "num_virtual_tokens": rows,
        "token_dim": width,
        "num_transformer_submodules": 1,
    }
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return folder
