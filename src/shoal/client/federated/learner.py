"""What learns in a run: it is given the shared weights, and gives back what its own data make of them."""

from __future__ import annotations

from typing import Protocol

from shoal.training.federated.means import UpdateVector


class Learner(Protocol):
    """One member's model and data."""

    def weights(self) -> UpdateVector:
        """float32 ``[size]``, as they are now."""
        ...

    def put(self, weights: UpdateVector) -> None:
        """Go on from these weights."""
        ...

    async def learn(self, round: int, steps: int, proximal: float) -> tuple[int, float]:
        """Local steps from the weights as they are.

        Args:
            proximal: FedProx's strength, towards the weights that it began with.

        Returns:
            How many examples were seen, and the mean loss of the last step.

        Raises:
            ShoalError: they cannot be done.
        """
        ...

    async def gradient(self, round: int) -> tuple[UpdateVector, int, float]:
        """The gradient of the loss at the weights as they are, for a step of all members together.

        Returns:
            Finite, float32 ``[size]``; how many examples were seen, and their mean loss.

        Raises:
            ShoalError: it cannot be computed.
        """
        ...
