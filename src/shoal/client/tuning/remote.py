"""Forward and backward through the blocks that others serve.

Each hop is asked by itself and answers the client: what a hop has given is kept here until the step is over,
and is sent again to go backward. A hop that is lost is replaced, and the step begins anew: with the same
numbers it comes to the same.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np
import trio
from msgspec import structs

from shoal.client.ring.hop import RouteHop
from shoal.client.ring.rings import Rings
from shoal.client.tuning.blocks import BlockGradients, MadeT, NotFinite, Passed, train_question
from shoal.client.tuning.factors import TunedAdapter
from shoal.errors import (
    Busy,
    NoCoverage,
    ShoalError,
    StepFailed,
    UsageError,
)
from shoal.executor.arrays import Floats
from shoal.net.receive_budget import STRANGER_LIMIT
from shoal.types import ModelShape, PeerId, Span
from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.messages import MAX_HEADER
from shoal.wire.training import MAX_LAYERS, MAX_ROWS, Train

ATTEMPTS = 8
"""How often a step is begun."""
MOST_FAILED = 2
"""Routes on which a step comes to no finite numbers, before that is the step's own fault."""
DIAL_S = 10.0
BUSY_S = 30.0
"""How long a hop that is busy is asked again and again."""

SHORT = STRANGER_LIMIT - MAX_HEADER
"""Bytes of a question that a node takes of anybody; longer ones only of who has just asked it something."""
KNOWN_S = 300.0
"""For so long we count on a node to know us; it does for twice as long."""


class RemoteBlocks:
    """All blocks of a model, at nodes that train.

    Args:
        within_s: how long one hop may take for one question.
        resume_s: how long blocks that nobody serves any more are waited for.

    Raises:
        UsageError: the adapter is so large that not one block of it fits a message.
    """

    def __init__(
        self, rings: Rings, shape: ModelShape, adapter: TunedAdapter, *, within_s: float, resume_s: float
    ) -> None:
        self._rings = rings
        self._finder = rings.finder.among_training()
        self._shape = shape
        self._adapter = adapter
        self._within_s, self._resume_s = within_s, resume_s
        self._avoid: set[PeerId] = set()
        self._answered: dict[PeerId, float] = {}
        self._block_bytes = (
            4 * adapter.rank * sum(rows + cols for rows, cols in adapter.layers.sizes.values())
        )
        self.most_rows = self._most_rows()
        """Tokens that one question may have."""
        self.route: list[RouteHop] = []
        self.replaced = 0
        """How often the route was found anew."""

    async def step(self, run: Callable[[], Awaitable[MadeT]]) -> MadeT:
        """What ``run`` makes with :meth:`forward` and :meth:`backward`; where a hop is lost on the way, from
        the beginning again, over another route.

        Raises:
            NotFinite: hops of more than one route have come to numbers that are not finite.
            NoCoverage: nobody trains some of the blocks.
            ShoalError: what ended the last attempt.
        """
        failed = 0
        for attempt in range(ATTEMPTS):
            try:
                if not self.route:
                    self.route = await self._find()
                return await run()
            except _HopLost as lost:
                self._avoid.add(lost.hop.address.peer)
                self._finder.suspect(lost.hop.address.peer)
                self.route = []
                self.replaced += 1
                failed += isinstance(lost.error, StepFailed)
                if failed == MOST_FAILED:
                    raise NotFinite(lost.error.message) from None
                if attempt + 1 == ATTEMPTS:
                    raise lost.error from None
        raise NoCoverage(f"no route through {self._shape.name} held for a step")

    async def forward(self, hidden: Floats, lengths: Sequence[int]) -> tuple[Passed, Floats]:
        """Sequences through all blocks, and what the last one gives.

        Args:
            hidden: float32 ``[rows, width]``.
            lengths: tokens of each sequence.
        """
        passed = Passed(tuple(lengths))
        for hop in self._pieces(len(hidden)):
            passed.entered.append(hidden)
            hidden = (await self._ask(hop, passed.lengths, hidden, None))[0]
        return passed, hidden

    async def backward(self, passed: Passed, gradients: Floats) -> BlockGradients:
        """The gradients of the adapter's matrices, by the blocks of each hop, and of what went in.

        Args:
            gradients: of what :meth:`forward` gave.

        Raises:
            NotFinite: some of them are NaN or infinite.
        """
        if not np.isfinite(gradients).all():
            raise NotFinite("the gradients of the loss are NaN or infinite")
        found: list[tuple[Span, Floats]] = []
        hops = self._pieces(len(gradients))
        for hop, entered in zip(reversed(hops), reversed(passed.entered), strict=True):
            gradients, factors = await self._ask(hop, passed.lengths, entered, gradients)
            found.append((hop.span, factors))
        return BlockGradients(found, gradients)

    def _most_rows(self) -> int:
        layers, rank = self._adapter.layers.sizes, self._adapter.rank
        if len(layers) > MAX_LAYERS:
            raise UsageError(
                f"{len(layers)} linear layers of each block are to be tuned, and {MAX_LAYERS} are the most",
                check="name those that matter, with --layer",
            )
        # At least a block goes with all of the rows, and with the gradients of what comes out.
        most = (MAX_PAYLOAD - self._block_bytes) // (8 * self._shape.hidden_size)
        if most < 1:
            raise UsageError(
                f"an adapter of rank {rank} has {self._block_bytes >> 20} MiB for each block, and a message "
                f"takes {MAX_PAYLOAD >> 20} MiB",
                check="choose a lower rank, or fewer layers",
            )
        return min(most, MAX_ROWS)

    def _pieces(self, rows: int) -> list[RouteHop]:
        """The route, hops with so many blocks that their matrices fill more than a message asked piece by
        piece."""
        left = MAX_PAYLOAD - 8 * self._shape.hidden_size * rows
        blocks = max(1, left // max(1, self._block_bytes))
        return [
            replace(hop, span=Span(start, min(start + blocks, hop.span.end)))
            for hop in self.route
            for start in range(hop.span.start, hop.span.end, blocks)
        ]

    async def _ask(
        self, hop: RouteHop, lengths: tuple[int, ...], hidden: Floats, gradients: Floats | None
    ) -> tuple[Floats, Floats]:
        number = self._rings.training.number()
        asked = train_question(number, self._shape, self._adapter, hop.span, lengths, hidden, gradients)
        message, payload = asked
        answer = np.frombuffer(await self._answer(hop, message, payload), np.float32)
        if not np.isfinite(answer).all():
            raise _HopLost(hop, StepFailed(f"{hop} gave numbers that are NaN or infinite"))
        return answer[: hidden.size].reshape(hidden.shape), answer[hidden.size :]

    async def _answer(self, hop: RouteHop, message: Train, payload: bytes) -> bytes:
        until = trio.current_time() + BUSY_S
        while True:
            try:
                return await self._ask_known(hop, message, payload)
            except Busy as error:
                if trio.current_time() > until:
                    raise _HopLost(hop, error) from error
                await trio.sleep(min(error.retry_after_s, 5.0))
            except ShoalError as error:  # whatever it says, another may do what it does not
                raise _HopLost(hop, error) from error

    async def _ask_known(self, hop: RouteHop, message: Train, payload: bytes) -> bytes:
        """The answer. A hop that has not answered us lately takes but a short question, which goes first."""
        peer, questions = hop.address.peer, self._rings.training
        channel = await self._rings.reach(hop.address, DIAL_S)
        since = trio.current_time() - self._answered.pop(peer, -math.inf)
        if message.size > SHORT and since > KNOWN_S:
            short = _shortest(message, questions.number())
            await questions.ask(channel, short, bytes(short.size), self._within_s)
        answer = await questions.ask(channel, message, payload, self._within_s)
        self._answered[peer] = trio.current_time()
        return answer

    async def _find(self) -> list[RouteHop]:
        """A route over all blocks; those that nobody serves are waited for, not long."""
        until = trio.current_time() + self._resume_s
        whole = Span(0, self._shape.n_blocks)
        while True:
            try:
                ways = await self._finder.served_numerics(self._shape, whole)
                return self._finder.find(self._shape, ways[0], 0, self._avoid, span=whole)
            except (NoCoverage, Busy):
                if trio.current_time() > until:
                    raise
                self._avoid = set()  # who has failed once may have come back
                await self._finder.wait_news(1.0)


def _shortest(message: Train, number: int) -> Train:
    """A question of one token, through as many of the blocks as fit, with an adapter that adds nothing."""
    layers = message.layers and (min(message.layers, key=lambda layer: layer.rows + layer.cols),)
    factors = sum(layer.rows + layer.cols for layer in layers)
    blocks = max(1, (SHORT - 4 * message.width) // max(1, 4 * factors))
    end = min(message.end, message.start + blocks)
    return structs.replace(
        message, number=number, end=end, backward=False, lengths=(1,), rank=1, layers=layers
    )


class _HopLost(ShoalError):
    """A hop does not do its part; another is to take its place."""

    def __init__(self, hop: RouteHop, error: ShoalError) -> None:
        super().__init__(error.message)
        self.hop, self.error = hop, error
