"""Soft prompts: rows in the place of tokens, before a prompt (Lester et al., "prompt tuning", 2021).

A folder is as PEFT's ``PromptTuningConfig`` has it saved. Its rows are what an embedding gives, before what
the model makes of embeddings; the client computes that and sends the result, so no hop needs to have them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shoal.errors import BadWeights, DigestMismatch, UnsupportedModel
from shoal.models.adapters.peft_config import CONFIG, LIMIT, TASKS
from shoal.models.adapters.read import checked_name, read_base, read_factor, weights_file
from shoal.models.checkpoint.headers import read_safetensors_header
from shoal.models.checkpoint.json_file import read_object
from shoal.types import Digest, ModelShape

PEFT_TYPE = "PROMPT_TUNING"
TENSOR = "prompt_embeddings"
MAX_ROWS = 512
"""Of a soft prompt: each session has them, and they go to the hops in one piece."""
CONTEXT = b"shoal soft prompt 1\n"
HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "inference_mode",
        "num_attention_heads",
        "num_layers",
        "num_transformer_submodules",
        "num_virtual_tokens",
        "peft_type",
        "peft_version",
        "prompt_tuning_init",
        "prompt_tuning_init_text",
        "revision",
        "task_type",
        "token_dim",
        "tokenizer_kwargs",
        "tokenizer_name_or_path",
    }
)
"""Fields that are read here, or say how it was begun. All else is refused unless it says no."""


@dataclass(frozen=True, slots=True, eq=False)
class SoftPrompt:
    """One in memory."""

    name: str
    digest: str
    rows: NDArray[np.float32]
    """``[tokens, width]``, before what the model makes of embeddings."""
    base: Digest | None = None
    """The model that it was made for, where its folder says so."""

    @property
    def tokens(self) -> int:
        """Virtual ones."""
        return len(self.rows)

    def check_model(self, shape: ModelShape) -> None:
        """Refuse one that was made for another model.

        Raises:
            DigestMismatch: its folder names another, or its rows have another width.
        """
        if self.base is not None and self.base != shape.digest:
            raise DigestMismatch(
                f"the soft prompt {self.name} was made for {self.base[:23]}…, and {shape.name} here is "
                f"{shape.digest[:23]}…: another model, or another version of it",
                check="ask the model that it was made for",
                next_command=f"shoal models show {shape.name}",
            )
        if self.rows.shape[1] != shape.hidden_size:
            raise DigestMismatch(
                f"the soft prompt {self.name} has rows of {self.rows.shape[1]} numbers, and {shape.name} "
                f"takes {shape.hidden_size}: it was made for another model",
                check="ask the model that its adapter_config.json names: base_model_name_or_path",
            )


def read_soft_prompt(path: str | Path, name: str = "") -> SoftPrompt:
    """The soft prompt in a folder as PEFT writes it.

    Args:
        name: how it is to be called; by default as its folder.

    Raises:
        UsageError: the name cannot be one.
        BadWeights: files are missing, damaged, too large or do not fit each other.
        UnsupportedModel: it is of a kind that is not computed here; names what.
    """
    folder = Path(path).expanduser()
    name = checked_name(folder, name)
    tokens, width = _read_config(folder)
    file = weights_file(folder)
    entries = {entry.name: entry for entry in read_safetensors_header(file)}
    if set(entries) != {TENSOR}:
        raise UnsupportedModel(
            f"{file}: it has {', '.join(sorted(entries))[:200] or 'no tensors'}, and a soft prompt has "
            f"{TENSOR} alone",
            check="train it by PEFT's PROMPT_TUNING, without modules_to_save",
        )
    if tuple(entries[TENSOR].shape) != (tokens, width):
        raise BadWeights(
            f"{file}: {TENSOR} is {list(entries[TENSOR].shape)}, and {CONFIG} says {[tokens, width]}",
            check="fetch it again",
        )
    rows = read_factor(entries[TENSOR])
    return SoftPrompt(name, soft_prompt_digest(rows), rows, read_base(folder))


def soft_prompt_digest(rows: NDArray[np.float32]) -> str:
    """The hash of everything that decides what it adds."""
    found = hashlib.sha256(CONTEXT + f"{len(rows)} {rows.shape[1]}\n".encode())
    found.update(np.ascontiguousarray(rows, "<f4").tobytes())
    return f"sha256:{found.hexdigest()}"


def soft_prompt_config(rows: int, width: int, *, blocks: int, base_name: str) -> dict[str, Any]:
    """``adapter_config.json`` of one that was tuned here, as PEFT reads it."""
    return {
        "peft_type": PEFT_TYPE,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "num_virtual_tokens": rows,
        "token_dim": width,
        "num_transformer_submodules": 1,
        "num_layers": blocks,
        "prompt_tuning_init": "RANDOM",
        "inference_mode": True,
    }


def _read_config(folder: Path) -> tuple[int, int]:
    """Rows, and their width."""
    path = folder / CONFIG
    if not path.exists():
        raise BadWeights(
            f"{folder} is no soft prompt: it has no {CONFIG}",
            check="give the folder that PEFT's save_pretrained, or shoal tune --method prompt, has written",
        )
    config = read_object(path, LIMIT)
    kind = config.get("peft_type")
    if kind != PEFT_TYPE:
        lora = kind == "LORA"
        raise UnsupportedModel(
            f"{path}: peft_type is {str(kind)[:80]!r}, and soft prompts are of the type {PEFT_TYPE}",
            check="nodes serve LoRA adapters" if lora else "tune one by PEFT's PROMPT_TUNING",
            next_command=f"shoal serve MODEL --adapter {folder}" if lora else "",
        )
    if config.get("task_type") not in TASKS:
        raise UnsupportedModel(f"{path}: task_type is {str(config['task_type'])[:80]!r}, not CAUSAL_LM")
    _refuse_others(path, config)
    tokens, width = config.get("num_virtual_tokens"), config.get("token_dim")
    if type(tokens) is not int or type(width) is not int or tokens < 1 or width < 1:
        raise BadWeights(f"{path}: num_virtual_tokens and token_dim are no sizes", check="fetch it again")
    if tokens > MAX_ROWS:
        raise UnsupportedModel(f"{path}: {tokens} virtual tokens, and {MAX_ROWS} are the most")
    return tokens, width


def _refuse_others(path: Path, config: Mapping[str, Any]) -> None:
    if config.get("num_transformer_submodules") not in (None, 1):
        raise UnsupportedModel(f"{path}: it is for a model with an encoder and a decoder")
    for name, value in config.items():
        if name not in HARMLESS and value:
            raise UnsupportedModel(f"{path}: {name[:80]} is {repr(value)[:80]}: it is not supported")
