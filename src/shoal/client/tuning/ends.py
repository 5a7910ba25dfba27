"""The client's part of a step: hidden states of tokens, the loss of what comes back, and its gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional

from shoal.client.tuning.data import Example, example_inputs
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
        """float32 ``[rows, width]`` of what runs through the model for them (:func:`example_inputs`)."""
        return self.embed_sequences(example_inputs(examples))

    def loss(self, examples: Sequence[Example], hidden: Floats) -> float:
        """The sum of the losses of all tokens that are to be learnt, by their weights."""
        with torch.no_grad():
            return float(sum(float(self._sum(*piece)) for piece in _pieces(examples, hidden)))

    def gradients(self, examples: Sequence[Example], hidden: Floats, share: float) -> tuple[float, Floats]:
        """The sum of the losses, and ``share`` times its gradients by ``hidden``, ``[rows, width]``."""
        found, total = np.zeros_like(hidden), 0.0
        for rows, wanted, weights in _pieces(examples, hidden):
            entering = rows.states.requires_grad_()
            with torch.enable_grad():
                loss = self._sum(rows, wanted, weights)
                (loss * share).backward()
            total += float(loss.detach())
            if entering.grad is not None:
                found[rows.first : rows.first + len(rows.states)] += entering.grad.numpy()
        return total, found

    def last_logits(self, sequences: Sequence[Sequence[int]], hidden: Floats) -> Floats:
        """float32 ``[sequences, vocab]``: what may follow each, by ``hidden`` of all their tokens."""
        last = torch.from_numpy(hidden[np.cumsum([len(tokens) for tokens in sequences]) - 1].copy())
        with torch.no_grad():
            return self._logits(last).numpy()

    def embed_sequences(self, sequences: Sequence[Sequence[int]]) -> Floats:
        """float32 ``[rows, width]`` of all tokens."""
        parts = [self._ends.embed(tokens, 0)[0] for tokens in sequences]
        return torch.cat(parts).float().cpu().contiguous().numpy()

    def _sum(self, rows: _Rows, wanted: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
        logits = self._logits(rows.states)
        if weights is None:
            return functional.cross_entropy(logits, wanted, reduction="sum")
        return (functional.cross_entropy(logits, wanted, reduction="none") * weights).sum()

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        return self._ends.logits(states[None].to(self._ends.device, self._ends.dtype))[0].float().cpu()


class _Rows:
    """Rows of hidden states that something is learnt from."""

    def __init__(self, first: int, states: torch.Tensor) -> None:
        self.first, self.states = first, states


def _pieces(
    examples: Sequence[Example], hidden: Floats
) -> list[tuple[_Rows, torch.Tensor, torch.Tensor | None]]:
    """Rows, a few at a time, what should follow each, and how much that counts."""
    found: list[tuple[_Rows, torch.Tensor, torch.Tensor | None]] = []
    begins: dict[tuple[int, ...], int] = {}
    rows = 0
    for tokens in example_inputs(examples):
        begins[tokens], rows = rows, rows + len(tokens)
    for example in examples:
        at = begins[example.token_ids[:-1]]
        first, end = example.learnt - 1, len(example.token_ids) - 1
        for start in range(first, end, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, end)
            states = torch.from_numpy(hidden[at + start : at + stop].copy())
            wanted = torch.tensor(example.token_ids[start + 1 : stop + 1])
            weights = torch.tensor(example.weights[start - first : stop - first]) if example.weights else None
            found.append((_Rows(at + start, states), wanted, weights))
    return found
