"""The tensors of an adapter as one flat vector, in an order that is the same at every member."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from shoal.errors import UsageError
from shoal.training.federated.means import UpdateVector


@dataclass(frozen=True, slots=True)
class VectorLayout:
    """Where each tensor is in the vector: by name, in the order of names."""

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, tensors: Mapping[str, np.ndarray]) -> VectorLayout:
        """The layout of these tensors, whatever order they come in."""
        return cls(tuple((name, tensors[name].shape) for name in sorted(tensors)))

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return sum(math.prod(shape) for _, shape in self.shapes)

    @property
    def digest(self) -> bytes:
        """32 bytes: members whose vectors mean the same have the same."""
        return sha256(repr(self.shapes).encode()).digest()

    def flatten(self, tensors: Mapping[str, np.ndarray]) -> UpdateVector:
        """float32 ``[size]``, a copy.

        Raises:
            UsageError: other tensors than those of the layout.
        """
        if VectorLayout.of(tensors) != self:
            raise UsageError(
                "the tensors are not those of the adapter: other names or shapes",
                check="use the same model, rank and layers as the others of the run",
            )
        parts = [np.asarray(tensors[name], np.float32).ravel() for name, _ in self.shapes]
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def unflatten(self, vector: UpdateVector) -> dict[str, UpdateVector]:
        """The tensors again, as views of ``vector``.

        Raises:
            UsageError: a vector of another size.
        """
        if vector.shape != (self.size,):
            raise UsageError(f"a vector of {vector.shape} elements for an adapter of {self.size}")
        found: dict[str, UpdateVector] = {}
        at = 0
        for name, shape in self.shapes:
            count = math.prod(shape)
            found[name] = vector[at : at + count].reshape(shape)
            at += count
        return found


def part_bounds(size: int, owners: int) -> list[slice]:
    """Which elements each owner has: stretches one after another, whose lengths differ by one at most.

    Args:
        owners: at least 1; of more owners than elements, the last have none.
    """
    short, longer = divmod(size, owners)
    found: list[slice] = []
    at = 0
    for owner in range(owners):
        end = at + short + (owner < longer)
        found.append(slice(at, end))
        at = end
    return found
