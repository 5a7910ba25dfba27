"""A member's own momentum, and what of it is sent in each step."""

from __future__ import annotations

import numpy as np

from shoal.training.federated.demo.coefficients import Coefficients, largest_of
from shoal.training.federated.demo.transform import from_frequencies, to_chunks, to_frequencies
from shoal.training.federated.means import UpdateVector


class DecoupledMomentum:
    """What gradients have come to at this member, without what was sent of it.

    Args:
        size: elements of the weights.
        decay: by which it is multiplied in each step, from 0 to below 1.
        kept: coefficients of a chunk that are sent in a step.
        held: of an earlier process of this member, float32 ``[size]``.
    """

    def __init__(self, size: int, decay: float, kept: int, held: UpdateVector | None = None) -> None:
        self._size, self._decay, self._kept = size, np.float32(decay), kept
        self._held = to_chunks(np.zeros(size, np.float32) if held is None else held)

    @property
    def held(self) -> UpdateVector:
        """float32 ``[size]``."""
        return self._held.reshape(-1)[: self._size]

    def extract(self, gradient: UpdateVector) -> Coefficients:
        """Add a step's gradient, finite, and take out what is to be sent.

        What rounding leaves out stays in the momentum with all the rest.
        """
        self._held = self._decay * self._held + to_chunks(gradient)
        taken = largest_of(to_frequencies(self._held), self._kept)
        self._held -= from_frequencies(taken.dense())
        self._held.reshape(-1)[self._size :] = 0  # what stands behind the last number is nobody's
        return taken

    def put_back(self, taken: Coefficients) -> None:
        """Add what was taken out for a step that was not made."""
        self._held += from_frequencies(taken.dense())
