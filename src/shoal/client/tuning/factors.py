"""The adapter that is tuned, and its optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shoal.errors import UsageError
from shoal.models.adapters.adapter import MAX_RANK
from shoal.types import Span


@dataclass(frozen=True, slots=True)
class TunedLayers:
    """Which linear layers of every block are tuned: their names, outputs and inputs."""

    list_name: str
    sizes: Mapping[str, tuple[int, int]]
    n_blocks: int


class TunedAdapter:
    """Matrices of one rank for the same layers of every block, in float32.

    They begin as PEFT's do: A by chance (He et al., 2015, with a = √5), B as zeros.
    """

    def __init__(self, layers: TunedLayers, *, rank: int, alpha: float, seed: int) -> None:
        """Raises UsageError: the rank cannot be."""
        if not 1 <= rank <= MAX_RANK:
            raise UsageError(f"an adapter of rank {rank}", check=f"choose a rank from 1 to {MAX_RANK}")
        self.layers, self.rank, self.alpha = layers, rank, alpha
        chance = torch.Generator().manual_seed(seed)
        self._pairs: dict[tuple[int, str], tuple[torch.nn.Parameter, torch.nn.Parameter]] = {}
        for block in range(layers.n_blocks):
            for name, (rows, cols) in layers.sizes.items():
                bound = 1 / math.sqrt(cols)
                down = torch.empty(rank, cols).uniform_(-bound, bound, generator=chance)
                pair = (torch.nn.Parameter(down), torch.nn.Parameter(torch.zeros(rows, rank)))
                self._pairs[block, name] = pair

    @property
    def scale(self) -> float:
        """By what its part is multiplied."""
        return self.alpha / self.rank

    @property
    def layer_names(self) -> list[str]:
        """Of the layers that are tuned, sorted."""
        return sorted(self.layers.sizes)

    @property
    def rows(self) -> None:
        """Nothing stands before a sequence."""
        return

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Of each block in order, and of each layer, A and then B."""
        return [half for pair in self._pairs.values() for half in pair]

    def named(self) -> dict[str, torch.nn.Parameter]:
        """The same by the names that PEFT gives them in files."""
        names: dict[str, torch.nn.Parameter] = {}
        for (block, name), (down, up) in self._pairs.items():
            path = f"base_model.model.{self.layers.list_name}.{block}.{name}"
            names |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        return names

    def payload(self, span: Span) -> bytes:
        """The matrices of the blocks of ``span``, as they travel."""
        return b"".join(half.detach().numpy().tobytes() for half in self._of(span))

    def add_gradients(self, span: Span, gradients: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
        """Add what a hop has found for its blocks, in the same order."""
        at = 0
        for half in self._of(span):
            found = torch.from_numpy(gradients[at : at + half.numel()].copy()).view_as(half)
            half.grad = found if half.grad is None else half.grad + found
            at += half.numel()

    def config(self, base_name: str) -> dict[str, Any]:
        """``adapter_config.json`` as PEFT reads it."""
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base_name,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "target_modules": self.layer_names,
            "inference_mode": True,
        }

    def _of(self, span: Span) -> list[torch.nn.Parameter]:
        return [half for (block, _), pair in self._pairs.items() if block in span for half in pair]
