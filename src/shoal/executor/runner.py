"""What the batcher needs of a span: rows of several sessions in, as many rows out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from shoal.errors import PositionGap, ShoalError, StepFailed
from shoal.executor.batcher import Outcome
from shoal.executor.pages import Pages
from shoal.models.kv import Cache
from shoal.types import Span

KV_PROBE = 1024
"""Tokens over which a model's own cache is measured: windows and states grow less than by the token."""


@dataclass(slots=True)
class State:
    """One session's KV in a span, or in a part of it."""

    span: Span
    pages: Pages
    length: int = 0
    """Tokens cached."""
    cache: Cache | None = None
    """Where the model's own code keeps them instead of in pages."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows of one session's step."""

    state: State
    position: int
    hidden: torch.Tensor
    """float32 ``[n, width]``; a forward may overwrite it with what comes out."""
    sequence_length: int = 0
    """Tokens of the sequence that they are a piece of; 0: it ends with them. See ``SpanModule.forward``."""


class Runner(Protocol):
    """A span that runs rows of several sessions in one forward. For one thread at a time."""

    span: Span
    width: int
    tensor_bytes: int
    """Bytes of the weights in memory."""
    kv_bytes: float
    """Bytes of KV that a token takes in all the blocks."""
    sliced: bool
    """Whether a prefill may run in slices: not where the last bits depend on how it is cut."""

    def open(self, span: Span, pages: Pages) -> State:
        """An empty state for a session that uses ``span`` of these blocks."""
        ...

    def forward(self, batch: Sequence[Rows]) -> list[Outcome]:
        """Run rows of different sessions. A state longer than its rows' position is rolled back to it."""
        ...


class Modules(Protocol):
    """What :class:`~shoal.models.span.SpanModule` is to a runner; there it says what each of these does."""

    span: Span
    width: int
    dtype: torch.dtype
    tensor_bytes: int

    def forward(
        self, hidden: torch.Tensor, cache: Cache, position: int, sequence_length: int = 0
    ) -> torch.Tensor: ...
    def new_cache(self) -> Cache: ...
    def kv_bytes(self, tokens: int) -> int: ...
    def part(self, span: Span) -> Modules: ...


class ModuleRunner:
    """A span of the model's own modules: exact, any family, one session after another."""

    sliced = False

    def __init__(self, module: Modules) -> None:
        self.module = module
        self.span = module.span
        self.width = module.width
        self.tensor_bytes = module.tensor_bytes
        self.kv_bytes = module.kv_bytes(KV_PROBE) / KV_PROBE

    def open(self, span: Span, pages: Pages) -> State:
        """Raises ``UsageError`` when ``span`` is not inside of this one."""
        return State(span, pages, cache=self.module.part(span).new_cache())

    def forward(self, batch: Sequence[Rows]) -> list[Outcome]:
        return [self._step(rows) for rows in batch]

    def _step(self, rows: Rows) -> Outcome:
        module, cache = self.module.part(rows.state.span), rows.state.cache
        if cache is None:
            return StepFailed("a state that another runner has made")
        try:
            rows.state.pages.resize(rows.position + len(rows.hidden))
            hidden = rows.hidden[None].to(module.dtype)
            out = module.forward(hidden, cache, rows.position, rows.sequence_length)
        except ShoalError as error:
            return error
        except Exception as error:  # noqa: BLE001
            # What a model's own code may raise is listed nowhere. It ends this step, never the node.
            return StepFailed(f"the forward failed: {type(error).__name__}: {error}")
        rows.state.length = cache.length
        return out[0].float().cpu()


def gap(state: State, position: int) -> PositionGap | None:
    """The error of a step that leaves positions out."""
    if position <= state.length:
        return None
    return PositionGap(f"a step at position {position}, but only {state.length} tokens are cached")
