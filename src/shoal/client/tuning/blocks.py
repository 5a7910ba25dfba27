"""The blocks that an adapter is tuned through, wherever they run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from shoal.client.tuning.factors import TunedAdapter
from shoal.errors import StepFailed
from shoal.executor.arrays import Floats
from shoal.types import ModelShape, Span
from shoal.wire.training import Train, TunedLayer

MadeT = TypeVar("MadeT")


class NotFinite(StepFailed):
    """A step comes to numbers that are NaN or infinite, whoever computes it."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockGradients:
    """What a step backward has found."""

    factors: Sequence[tuple[Span, Floats]]
    """Of the adapter's matrices, by the blocks of each hop."""
    entered: Floats
    """Of what went into the first block, ``[rows, width]``."""


@dataclass(eq=False)
class Passed:
    """A step on its way: what each hop was given."""

    lengths: tuple[int, ...]
    entered: list[Floats] = field(default_factory=list[Floats])


class TuningBlocks(Protocol):
    """All blocks of a model, forward and backward with an adapter."""

    replaced: int
    """How often a hop was."""

    @property
    def most_rows(self) -> int:
        """Tokens that one question may have."""
        ...

    async def step(self, run: Callable[[], Awaitable[MadeT]]) -> MadeT:
        """What ``run`` makes with :meth:`forward` and :meth:`backward`.

        Raises:
            NotFinite: it comes to numbers that are not finite.
            ShoalError: the blocks do not do their part.
        """
        ...

    async def forward(self, hidden: Floats, lengths: Sequence[int]) -> tuple[Passed, Floats]:
        """Sequences through all blocks, and what the last one gives.

        Args:
            hidden: float32 ``[rows, width]``.
            lengths: tokens of each sequence.
        """
        ...

    async def backward(self, passed: Passed, gradients: Floats) -> BlockGradients:
        """The gradients of the adapter's matrices, and of what went in, by those of what came out."""
        ...


def train_question(
    number: int,
    shape: ModelShape,
    adapter: TunedAdapter,
    span: Span,
    lengths: tuple[int, ...],
    hidden: Floats,
    gradients: Floats | None,
) -> tuple[Train, bytes]:
    """The question for one span, with the adapter as it is now: forward, or with ``gradients`` backward."""
    layers = adapter.layers
    message = Train(
        number,
        shape.digest,
        span.start,
        span.end,
        gradients is not None,
        shape.hidden_size,
        lengths,
        layers.list_name,
        adapter.rank,
        adapter.scale,
        tuple(TunedLayer(name, *sizes) for name, sizes in layers.sizes.items()),
    )
    parts = [hidden.tobytes(), b"" if gradients is None else gradients.tobytes()]
    return message, b"".join([*parts, adapter.payload(span)])
