"""What the batcher needs of a span: rows of several sessions in, as many rows out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from shoal.errors import NotAllowed, PositionGap, ShoalError, UsageError
from shoal.executor.adapters.parts import AdapterNumbers
from shoal.executor.arrays import Floats
from shoal.executor.batcher import ForwardOutput
from shoal.executor.pages import PagePool, Pages
from shoal.models.adapters.adapter import Adapter
from shoal.models.checkpoint.mrope import Grids, Positions, Sections, check_grids, rotary_positions
from shoal.models.checkpoint.multimodal import Stretches, check_stretches
from shoal.types import AdapterDigest, Exactness, Span

if TYPE_CHECKING:
    from shoal.executor.kernels.decode_steps import DecodeSteps
    from shoal.executor.proofs.tracer import BlockTracer
    from shoal.executor.training.train import TrainingRun, TrainingWork
    from shoal.models.build.kv import Cache  # stands on torch, which a span on the kernels does without


@dataclass(slots=True)
class KvState:
    """One session's KV in a span, or in a part of it."""

    span: Span
    pages: Pages
    length: int = 0
    """Tokens cached."""
    cache: Cache | None = None
    """Where the model's own code keeps them instead of in pages."""
    adapter: int = 0
    """Which of the runner's adapters the session has, counted from 1; 0: none."""


@dataclass(frozen=True, slots=True)
class SessionRows:
    """Some rows of one session's step."""

    state: KvState
    position: int
    hidden: Floats
    """``[n, width]``; a forward may overwrite it with what comes out."""
    sequence_length: int = 0
    """Tokens of the sequence that they are a piece of; 0: it ends with them. See ``SpanModule.forward``."""
    mutual: Stretches = ()
    """Stretches of positions among them whose tokens all see each other."""
    grids: Grids = ()
    """Pictures that begin before their end, by which rows have three positions."""

    def rotary_positions(self) -> Positions:
        """Of each row, the three positions that turn it, ``[n, 3]``."""
        return rotary_positions(self.position, len(self.hidden), self.grids)

    def seen_ends(self) -> NDArray[np.int32]:
        """Of each row, the position behind the last that it sees."""
        ends = np.arange(self.position + 1, self.position + len(self.hidden) + 1, dtype=np.int32)
        for first, last in self.mutual:
            ends[first - self.position : last - self.position] = last
        return ends


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a runner can do. Whoever uses one asks this, and never of what type it is."""

    batch: bool
    """Rows of several sessions run in one forward, and a prefill in slices: what comes out of a row is the
    same whatever runs beside it, in int8, w8a8 and int4 on the C kernels to the last bit."""
    roll_back: bool
    """A session's KV can return to any earlier position; else a step from there may be ``CannotRollBack``."""
    exact: bool
    """What comes out has the bits that the model's own modules give in float32."""
    stateless: bool = False
    """A step is a whole input, from position 0: nothing is kept for the next one, which may be another."""
    untrainable: str = "gradients go through the model's own modules alone: serve it with --format fp32"
    """Why no gradients go through its blocks; empty where they do."""
    boundary: int = 0
    """The first block of a decoder that has an encoder before it; 0: there is none. A session is over blocks
    of one of them, and over the decoder's it begins with what the encoder gave, in a step from position 0."""


UNPROVABLE = "proofs are of int8 and w8a8 by the C kernels on the CPU, and these blocks run otherwise"


class Runner(Protocol):
    """A span that runs rows of several sessions in one forward. For one thread at a time."""

    capabilities: Capabilities
    bits: Exactness
    """On what the bits depend of what comes out."""
    span: Span
    width: int
    tensor_bytes: int
    """Bytes of the weights in memory."""
    kv_bytes: float
    """Bytes of KV that a token takes in all the blocks."""

    def make_pool(self, tokens: int) -> PagePool:
        """Pages for at least ``tokens`` tokens of KV, which this runner then uses."""
        ...

    def train(self, span: Span, work: TrainingWork) -> TrainingRun:
        """Forward or backward with an adapter of a client's, which is then done sequence by sequence.

        Raises:
            NotAllowed: no gradients go through these blocks; see ``Capabilities.untrainable``.
            DigestMismatch: the adapter does not fit them.
        """
        ...

    def load_adapters(self, adapters: Sequence[Adapter]) -> None:
        """Let sessions have these adapters. Called once, before any is open.

        Raises:
            DigestMismatch: one of them was made for another model.
            UnsupportedModel: the span's blocks take none.
        """
        ...

    def open(self, span: Span, pages: Pages, adapter: AdapterDigest | None = None) -> KvState:
        """An empty state for a session that uses ``span`` of these blocks, with an adapter or without."""
        ...

    def decode_steps(self) -> DecodeSteps | None:
        """What runs decode steps from bytes to bytes, once there is a pool; ``None`` where nothing does."""
        ...

    def tracer(self) -> BlockTracer:
        """What lays a block's forward open, for proofs, once there is a pool.

        Raises:
            NotAllowed: there are no proofs of what these blocks compute.
        """
        ...

    def forward(self, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        """Run rows of different sessions. A state longer than its rows' position is rolled back to it."""
        ...

    def watched(self) -> AbstractAsyncContextManager[None]:
        """While the span is served: ends with any other process that computes it, and they with it.

        Raises:
            StepFailed: one of them is lost.
        """
        ...


class PagedRunner(ABC):
    """What runners share that keep all KV in pages of their own, and compute in this process.

    Args:
        family: the model's ``model_type``.
        sections: where its rows may have three positions.
    """

    span: Span
    capabilities: Capabilities

    def __init__(self, family: str, sections: Sections | None) -> None:
        self._family, self._sections = family, sections
        self.numbers = AdapterNumbers()

    def open(self, span: Span, pages: Pages, adapter: AdapterDigest | None = None) -> KvState:
        """As :meth:`Runner.open`.

        Raises:
            UsageError: ``span`` is not inside of this one, or the adapter is not here.
        """
        if span.start < self.span.start or span.end > self.span.end:
            raise UsageError(f"blocks {span} are not inside of {self.span}")
        return KvState(span, pages, adapter=self.numbers.of(adapter))

    def forward(self, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        """As :meth:`Runner.forward`, once for each span that sessions use, of the rows that have pages."""
        outcomes = [_make_room(self._family, self._sections, rows) for rows in batch]
        # Sessions may use parts of this span; those of one part run together.
        for span in dict.fromkeys(rows.state.span for rows in batch):
            ready = [i for i, rows in enumerate(batch) if outcomes[i] is None and rows.state.span == span]
            if ready:
                done = self._run(span, [batch[i] for i in ready])
                for i, outcome in zip(ready, done, strict=True):
                    outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    def train(self, span: Span, work: TrainingWork) -> TrainingRun:
        raise NotAllowed(f"this node does not train: {self.capabilities.untrainable}")

    def decode_steps(self) -> DecodeSteps | None:
        return None

    def tracer(self) -> BlockTracer:
        raise NotAllowed(UNPROVABLE)

    def watched(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()  # nobody else computes

    @abstractmethod
    def _run(self, span: Span, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        """Run rows of sessions that use the same blocks."""


def _make_room(family: str, sections: Sections | None, rows: SessionRows) -> ForwardOutput | None:
    """Pages for these rows, and none for what they replace; or why not."""
    if (error := gap(rows.state, rows.position)) is not None:
        return error
    try:
        check_stretches(family, rows.mutual)
        check_grids(sections, rows.grids)
        rows.state.pages.resize(rows.position + len(rows.hidden))
    except ShoalError as error:
        return error
    return None


def gap(state: KvState, position: int) -> PositionGap | None:
    """The error of a step that leaves positions out."""
    if position <= state.length:
        return None
    return PositionGap(f"a step at position {position}, but only {state.length} tokens are cached")
