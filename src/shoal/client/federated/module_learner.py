"""Any module of torch as what learns in a run: a small model that is trained from scratch, say."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from shoal.errors import StepFailed
from shoal.executor.thread import ComputeThread
from shoal.training.federated.layout import VectorLayout
from shoal.training.federated.means import UpdateVector
from shoal.training.federated.outer import proximal_gradient

LossOf = Callable[[int], tuple[torch.Tensor, int]]
"""The mean loss of the examples of a step, counted from 0, and how many they are."""


class ModuleLearner:
    """All parameters of a module, in float32, and a member's own examples of each step.

    Args:
        rate_of: AdamW's rate of a step, for the local steps of a round. A run by DeMo has no use for it.
        clip: the largest norm of a gradient; 0: any.
        thread: on which it computes.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        loss_of: LossOf,
        thread: ComputeThread,
        *,
        rate_of: Callable[[int], float] = lambda step: 1e-3,
        clip: float = 1.0,
    ) -> None:
        self._named = dict(module.named_parameters())
        self._loss_of, self._thread, self._clip = loss_of, thread, clip
        self._rate_of = rate_of
        self._optimizer = torch.optim.AdamW(list(self._named.values()), weight_decay=0.0)
        self.layout = VectorLayout.of(self._tensors())

    def weights(self) -> UpdateVector:
        """float32 ``[size]``: every parameter, by name."""
        return self.layout.flatten(self._tensors())

    def put(self, weights: UpdateVector) -> None:
        """Take these for the parameters."""
        parts = self.layout.unflatten(weights)
        with torch.no_grad():
            for name, parameter in self._named.items():
                parameter.copy_(torch.from_numpy(parts[name].copy()))

    async def learn(self, round: int, steps: int, proximal: float) -> tuple[int, float]:
        """As :meth:`Learner.learn`. Raises StepFailed: a loss or gradient is NaN or infinite."""
        begun = self.weights() if proximal else None
        seen, loss = 0, float("nan")
        for step in range(round * steps, (round + 1) * steps):
            count, loss = await self._thread.run(partial(self._descend, step, begun, proximal))
            seen += count
        return seen, loss

    async def gradient(self, round: int) -> tuple[UpdateVector, int, float]:
        """As :meth:`Learner.gradient`. Raises StepFailed: it is NaN or infinite."""
        count, loss = await self._thread.run(partial(self.backward, round))
        return self.gradients(), count, loss

    def gradients(self) -> UpdateVector:
        """What the last backward gave, clipped, float32 ``[size]``."""
        found = {
            name: np.zeros(parameter.shape, np.float32) if parameter.grad is None else parameter.grad.numpy()
            for name, parameter in self._named.items()
        }
        return self.layout.flatten(found)

    def backward(self, step: int) -> tuple[int, float]:
        """The examples of a step and their mean loss, whose gradients are there then. Blocks: on the thread.

        Raises:
            StepFailed: loss or gradients are NaN or infinite.
        """
        self._optimizer.zero_grad()
        with torch.enable_grad():
            loss, count = self._loss_of(step)
            loss.backward()
        parameters = list(self._named.values())
        length = torch.nn.utils.clip_grad_norm_(parameters, self._clip or float("inf"))
        if not bool(loss.isfinite()) or not bool(length.isfinite()):
            raise StepFailed("a loss or gradient is NaN or infinite", check="lower the rate")
        return count, float(loss.detach())

    def put_gradients(self, gradients: UpdateVector) -> None:
        """Take these, float32 ``[size]``, in the place of what the last backward gave."""
        parts = self.layout.unflatten(gradients)
        for name, parameter in self._named.items():
            parameter.grad = torch.from_numpy(parts[name].copy())

    def step(self, number: int) -> None:
        """A step of AdamW by the gradients that are there."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate_of(number)
        self._optimizer.step()

    def _descend(self, step: int, begun: UpdateVector | None, proximal: float) -> tuple[int, float]:
        """A step of AdamW."""
        found = self.backward(step)
        if begun is not None:
            terms = self.layout.unflatten(proximal_gradient(self.weights(), begun, proximal))
            for name, parameter in self._named.items():
                if parameter.grad is not None:
                    parameter.grad += torch.from_numpy(terms[name].copy())
        self.step(step)
        return found

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: parameter.detach().numpy() for name, parameter in self._named.items()}
