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
        self._before = np.zeros((0, ends.width), np.float32)
        for parameter in ends.model.parameters():
            parameter.requires_grad_(False)

    @property
    def before(self) -> int:
        """Rows that stand before each sequence now."""
        return len(self._before)

    def put_before(self, rows: torch.Tensor | None) -> None:
        """From now on these stand before each sequence, ``[n, width]``, as embeddings are; ``None``: nothing.

        Raises:
            UnsupportedModel: the model takes tokens alone.
        """
        if rows is not None:
            with torch.no_grad():
                self._before = self._ends.place(rows)[0].float().cpu().contiguous().numpy()

    def pull_back(self, rows: torch.Tensor, lengths: Sequence[int], entered: Floats) -> None:
        """Add to the gradient of ``rows``, which stood before each sequence, what those have come to.

        Args:
            lengths: as :meth:`lengths`.
            entered: the gradients of all that went into the first block, ``[rows, width]``.
        """
        begins = np.cumsum([0, *lengths[:-1]])
        parts = [torch.from_numpy(entered[begin : begin + len(rows)]) for begin in begins.tolist()]
        found = torch.stack(parts).sum(0)
        with torch.enable_grad():
            placed = self._ends.place(rows)[0]
            placed.backward(found.to(placed.device, placed.dtype))

    def lengths(self, sequences: Sequence[Sequence[int]]) -> list[int]:
        """Rows of each, with what stands before it."""
        return [self.before + len(tokens) for tokens in sequences]

    def embed(self, examples: Sequence[Example]) -> Floats:
        """float32 ``[rows, width]`` of what runs through the model for them (:func:`example_inputs`)."""
        return self.embed_sequences(example_inputs(examples))

    def loss(self, examples: Sequence[Example], hidden: Floats) -> float:
        """The sum of the losses of all tokens that are to be learnt, by their weights."""
        with torch.no_grad():
            return float(sum(float(self._sum(*piece)) for piece in self._pieces(examples, hidden)))

    def gradients(self, examples: Sequence[Example], hidden: Floats, share: float) -> tuple[float, Floats]:
        """The sum of the losses, and ``share`` times its gradients by ``hidden``, ``[rows, width]``."""
        found, total = np.zeros_like(hidden), 0.0
        for rows, wanted, weights in self._pieces(examples, hidden):
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
        last = torch.from_numpy(hidden[np.cumsum(self.lengths(sequences)) - 1].copy())
        with torch.no_grad():
            return self._logits(last).numpy()

    def embed_sequences(self, sequences: Sequence[Sequence[int]]) -> Floats:
        """float32 ``[rows, width]`` of all tokens, with what stands before each sequence."""
        position, before = len(self._before), torch.from_numpy(self._before)
        parts = [
            torch.cat([before, self._ends.embed(tokens, position)[0].float().cpu()]) for tokens in sequences
        ]
        return torch.cat(parts).contiguous().numpy()

    def _pieces(
        self, examples: Sequence[Example], hidden: Floats
    ) -> list[tuple[_Rows, torch.Tensor, torch.Tensor | None]]:
        """Rows, a few at a time, what should follow each, and how much that counts."""
        found: list[tuple[_Rows, torch.Tensor, torch.Tensor | None]] = []
        begins: dict[tuple[int, ...], int] = {}
        rows = 0
        for tokens in example_inputs(examples):
            begins[tokens] = rows + len(self._before)
            rows += len(self._before) + len(tokens)
        for example in examples:
            at = begins[example.token_ids[:-1]]
            first, end = example.learnt - 1, len(example.token_ids) - 1
            for start in range(first, end, ROWS_AT_ONCE):
                stop = min(start + ROWS_AT_ONCE, end)
                states = torch.from_numpy(hidden[at + start : at + stop].copy())
                wanted = torch.tensor(example.token_ids[start + 1 : stop + 1])
                weights = (
                    torch.tensor(example.weights[start - first : stop - first]) if example.weights else None
                )
                found.append((_Rows(at + start, states), wanted, weights))
        return found

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
