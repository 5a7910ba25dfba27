"""A tuner as what learns in a federated run: its own data, and the adapter that all members share."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch

from shoal.client.tuning.data import Example, batches
from shoal.client.tuning.tuner import Tuner, TuningOptions
from shoal.errors import StepFailed
from shoal.training.federated.layout import VectorLayout
from shoal.training.federated.means import UpdateVector


class TunerLearner:
    """Local steps of a tuner. Which examples a step has follows from its number, so a run that was ended goes
    on with those that come next.

    Args:
        examples: this member's own; at least one.
    """

    def __init__(self, tuner: Tuner, examples: list[Example], options: TuningOptions) -> None:
        self.tuner = tuner
        self._examples, self._options = examples, options
        self.layout = VectorLayout.of(self._tensors())
        self._epochs: dict[int, list[list[Example]]] = {}

    def weights(self) -> UpdateVector:
        """float32 ``[size]``: every matrix of the adapter, by name."""
        return self.layout.flatten(self._tensors())

    def put(self, weights: UpdateVector) -> None:
        """Take these for the adapter's matrices."""
        parts = self.layout.unflatten(weights)
        with torch.no_grad():
            for name, half in self.tuner.adapter.named().items():
                half.copy_(torch.from_numpy(parts[name].copy()))

    async def learn(self, round: int, steps: int, proximal: float) -> tuple[int, float]:
        """As :meth:`Learner.learn`. Raises as :meth:`Tuner.learn`."""
        seen, loss = 0, float("nan")
        self.tuner.hold_near(proximal)
        for step in range(round * steps, (round + 1) * steps):
            examples = self._of_step(step)
            loss = (await self.tuner.learn(examples)).loss
            seen += len(examples)
        if not np.isfinite(self.weights()).all():
            raise StepFailed(
                "the adapter has NaN or infinite numbers after local steps", check="lower --rate"
            )
        return seen, loss

    async def gradient(self, round: int) -> tuple[UpdateVector, int, float]:
        """As :meth:`Learner.gradient`: nothing where it is not finite. Raises as :meth:`Tuner.gradients`."""
        examples = self._of_step(round)
        loss = await self.tuner.gradients(examples)
        halves = self.tuner.adapter.named()
        found = {
            name: np.zeros(half.shape, np.float32) if half.grad is None else half.grad.numpy()
            for name, half in halves.items()
        }
        return self.layout.flatten(found), len(examples), loss

    def _of_step(self, step: int) -> list[Example]:
        """The examples of one step: those of the next batches, over and over through the data."""
        per_epoch = self._steps_of(0)
        epoch, at = divmod(step, len(per_epoch))
        return self._steps_of(epoch)[at % len(self._steps_of(epoch))]

    def _steps_of(self, epoch: int) -> list[list[Example]]:
        if epoch not in self._epochs:
            tokens, seed, joined = self._options.batch_tokens, self._options.seed, self._options.accumulate
            made = batches(self._examples, tokens=tokens, seed=seed, epoch=epoch)
            kept = {0: self._epochs[0]} if 0 in self._epochs else {}
            self._epochs = kept | {
                epoch: [list(chain(*made[at : at + joined])) for at in range(0, len(made), joined)]
            }
        return self._epochs[epoch]

    def _tensors(self) -> dict[str, np.ndarray]:
        return {name: half.detach().numpy() for name, half in self.tuner.adapter.named().items()}
