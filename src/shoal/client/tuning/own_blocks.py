"""All blocks of a model on this machine, so that nothing of the data leaves it, not even as hidden states."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import numpy as np

from shoal.client.tuning.blocks import BlockGradients, MadeT, NotFinite, Passed, train_question
from shoal.client.tuning.factors import TunedAdapter
from shoal.errors import StepFailed, UnsupportedModel
from shoal.executor.arrays import Floats
from shoal.executor.thread import ComputeThread
from shoal.executor.training.payload import read_work
from shoal.executor.training.train import TrainingRun, check_trainable
from shoal.models.build.load import load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.local_model import LocalModel
from shoal.types import ModelShape, Span
from shoal.wire.training import MAX_ROWS


def load_own_blocks(local: LocalModel) -> SpanModule:
    """Every block of a model, in float32. Blocks: on the thread that is to compute.

    Raises:
        UnsupportedModel: no gradients go through them.
        BadWeights: they cannot be loaded.
    """
    module = load_span_module(local, Span(0, local.shape.n_blocks))
    why = check_trainable(module) if isinstance(module, SpanModule) else "it has an encoder"
    if why or not isinstance(module, SpanModule):
        raise UnsupportedModel(f"{local.name} is not tuned: {why}")
    return module


class OwnBlocks:
    """As :class:`~shoal.client.tuning.remote.RemoteBlocks`, without any node, and for as long as it takes."""

    def __init__(
        self,
        module: SpanModule,
        shape: ModelShape,
        adapter: TunedAdapter,
        thread: ComputeThread,
    ) -> None:
        self._module, self._shape, self._adapter, self._thread = module, shape, adapter, thread
        self._whole = Span(0, shape.n_blocks)
        self.replaced = 0

    @property
    def most_rows(self) -> int:
        """Tokens that one question may have."""
        return MAX_ROWS

    async def step(self, run: Callable[[], Awaitable[MadeT]]) -> MadeT:
        """What ``run`` makes. Raises NotFinite: it comes to numbers that are not finite."""
        try:
            return await run()
        except NotFinite:
            raise
        except StepFailed as error:
            raise NotFinite(error.message) from error

    async def forward(self, hidden: Floats, lengths: Sequence[int]) -> tuple[Passed, Floats]:
        """As :meth:`RemoteBlocks.forward`."""
        passed = Passed(tuple(lengths), [hidden])
        return passed, (await self._run(passed.lengths, hidden, None))[0]

    async def backward(self, passed: Passed, gradients: Floats) -> BlockGradients:
        """As :meth:`RemoteBlocks.backward`."""
        if not np.isfinite(gradients).all():
            raise NotFinite("the gradients of the loss are NaN or infinite")
        found = await self._run(passed.lengths, passed.entered[0], gradients)
        factors = [part.ravel() for part in found[1:]]
        return BlockGradients([(self._whole, np.concatenate(factors))] if factors else [], found[0])

    async def _run(self, lengths: tuple[int, ...], hidden: Floats, gradients: Floats | None) -> list[Floats]:
        message, payload = train_question(
            0, self._shape, self._adapter, self._whole, lengths, hidden, gradients
        )
        run = await self._thread.run(lambda: TrainingRun(self._module, read_work(message, payload, math.inf)))
        while not await self._thread.run(run.advance):
            pass  # a sequence at a time, so that the thread is free in between
        return await self._thread.run(partial(run.result))
