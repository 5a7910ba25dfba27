"""The client's part of a step: hidden states of tokens, the loss of what comes back, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from shoal.client.tuning.data import Example
from shoal.executor.arrays import Floats
from shoal.models.build.ends import EndsModule

ROWS_AT_ONCE = 256
"""Rows whose logits are in memory together."""


class TuningEnds:
    """The embedding and the head, frozen. For one thread at a time."""

    def __init__(self, ends: EndsModule) -> None:
        self._ends = ends
        for parameter in ends.model.parameters():
            parameter.requires_grad_(False)

    def embed(self, examples: Sequence[Example]) -> Floats:
        """float32 ``[rows, width]`` of all tokens but each example's last, which predicts nothing."""
        parts = [self._ends.embed(example.token_ids[:-1], 0)[0] for example in examples]
        return torch.cat(parts).float().cpu().contiguous().numpy()

    def loss(self, examples: Sequence[Example], hidden: Floats) -> float:
        """The sum of the losses of all tokens that are to be learnt."""
        with torch.no_grad():
            return float(sum(float(self._sum(rows, wanted)) for rows, wanted in _pieces(examples, hidden)))

    def gradients(self, examples: Sequence[Example], hidden: Floats, share: float) -> tuple[float, Floats]:
        """The sum of the losses, and ``share`` times its gradients by ``hidden``, ``[rows, width]``."""
        found, total = np.zeros_like(hidden), 0.0
        for rows, wanted in _pieces(examples, hidden):
            entering = rows.states.requires_grad_()
            with torch.enable_grad():
                loss = self._sum(rows, wanted)
                (loss * share).backward()
            total += float(loss.detach())
            if entering.grad is not None:
                found[rows.first : rows.first + len(rows.states)] = entering.grad.numpy()
        return total, found

    def _sum(self, rows: _Rows, wanted: torch.Tensor) -> torch.Tensor:
        logits = self._ends.logits(rows.states[None].to(self._ends.device, self._ends.dtype))[0]
        return functional.cross_entropy(logits.float().cpu(), wanted, reduction="sum")


class _Rows:
    """Rows of hidden states that something is learnt from."""

    def __init__(self, first: int, states: torch.Tensor) -> None:
        self.first, self.states = first, states


def _pieces(examples: Sequence[Example], hidden: Floats) -> list[tuple[_Rows, torch.Tensor]]:
    """Rows, a few at a time, and what should follow each."""
    found: list[tuple[_Rows, torch.Tensor]] = []
    at = 0
    for example in examples:
        end = len(example.token_ids) - 1
        for start in range(example.learnt - 1, end, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, end)
            states = torch.from_numpy(hidden[at + start : at + stop].copy())
            wanted = torch.tensor(example.token_ids[start + 1 : stop + 1])
            found.append((_Rows(at + start, states), wanted))
        at += end
    return found
