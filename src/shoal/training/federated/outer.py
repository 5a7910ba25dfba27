"""What members do with the mean of their updates, and what holds them together in between."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from shoal.errors import RemoteProtocolError
from shoal.training.federated.means import UpdateVector


@dataclass(frozen=True, slots=True)
class SharedState:
    """The adapter between two rounds, the same at every member: weights and the outer momentum, float32."""

    weights: UpdateVector
    momentum: UpdateVector

    @classmethod
    def fresh(cls, weights: UpdateVector) -> SharedState:
        """Before the first round."""
        return cls(weights, np.zeros_like(weights))

    @property
    def digest(self) -> bytes:
        """32 bytes: of every bit of it."""
        return sha256(self.payload()).digest()

    def payload(self) -> bytes:
        """As it travels: weights, then momentum, little-endian."""
        return self.weights.astype("<f4").tobytes() + self.momentum.astype("<f4").tobytes()

    @classmethod
    def read(cls, payload: bytes, size: int) -> SharedState:
        """From :meth:`payload`. Raises RemoteProtocolError: another size, or numbers that are not finite."""
        if len(payload) != 8 * size:
            raise RemoteProtocolError(f"a shared state of {len(payload)} bytes, not {8 * size}")
        values = np.frombuffer(payload, "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise RemoteProtocolError("a shared state with NaN or infinite numbers")
        return cls(values[:size], values[size:])

    def step(self, mean: UpdateVector, rate: float, momentum: float) -> SharedState:
        """The next one: an outer step of SGD with Nesterov's momentum (DiLoCo: Douillard et al., 2023).

        With ``rate`` 1 and ``momentum`` 0 the mean is added as it is, which is FedAvg. Every member computes
        it by itself: each operation is rounded once, in an order that is fixed, so all have the same bits.

        Args:
            mean: of the updates.
        """
        rate32, momentum32 = np.float32(rate), np.float32(momentum)
        held: UpdateVector = np.add(momentum32 * self.momentum, mean, dtype=np.float32)
        moved: UpdateVector = np.multiply(rate32, mean + momentum32 * held, dtype=np.float32)
        return SharedState(np.add(self.weights, moved, dtype=np.float32), held)


def proximal_gradient(weights: UpdateVector, begin: UpdateVector, strength: float) -> UpdateVector:
    """What FedProx adds to the gradient of the loss (Li et al., 2020): of ``strength / 2 · |w - begin|²``."""
    return np.float32(strength) * (weights - begin)
