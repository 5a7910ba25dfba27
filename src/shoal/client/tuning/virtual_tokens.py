"""A soft prompt that is tuned: rows of the client's own, which stand before each sequence."""

from __future__ import annotations

from typing import Any

import torch

from shoal.errors import UsageError
from shoal.executor.arrays import Floats
from shoal.models.adapters.soft_prompt import MAX_ROWS, TENSOR, soft_prompt_config
from shoal.types import Span


class TunedPrompt:
    """Rows that begin as the embeddings of tokens drawn by chance do (PEFT's SAMPLE_VOCAB).

    Args:
        rows: those embeddings, ``[n, width]``.
        n_blocks: of the model.
    """

    def __init__(self, rows: torch.Tensor, n_blocks: int) -> None:
        self._rows, self._n_blocks = torch.nn.Parameter(rows.detach().float().clone()), n_blocks

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The rows, as one."""
        return [self._rows]

    @property
    def layer_names(self) -> list[str]:
        """None: the blocks are as they are."""
        return []

    @property
    def rows(self) -> torch.Tensor:
        """``[n, width]``, as embeddings are."""
        return self._rows

    def named(self) -> dict[str, torch.nn.Parameter]:
        """By PEFT's name."""
        return {TENSOR: self._rows}

    def add_gradients(self, span: Span, gradients: Floats) -> None:
        """There are none of the blocks."""

    def config(self, base_name: str) -> dict[str, Any]:
        """As PEFT reads it."""
        return soft_prompt_config(*self._rows.shape, blocks=self._n_blocks, base_name=base_name)


def drawn_tokens(count: int, vocab: int, seed: int) -> list[int]:
    """Tokens whose embeddings a soft prompt begins with. Raises UsageError: there cannot be so many."""
    if not 1 <= count <= MAX_ROWS:
        raise UsageError(
            f"a soft prompt of {count} virtual tokens", check=f"choose --prompt-tokens from 1 to {MAX_ROWS}"
        )
    chance = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocab, (count,), generator=chance).tolist()
