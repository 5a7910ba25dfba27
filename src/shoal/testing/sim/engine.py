"""What computes the simulated model, on the loop and in simulated time: a node's blocks, and a client's ends.

Pages are the product's own. What an engine is asked for that no engine may be asked for is a violation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import trio

from shoal.errors import Busy, StepFailed, Superseded, UnknownSession
from shoal.executor.arrays import Floats
from shoal.executor.codecs import decode
from shoal.executor.ends import EndsEngine
from shoal.executor.engine import Engine, StepCallback, StepOutput
from shoal.executor.pages import PAGE, PagePool, Pages
from shoal.executor.runner import Capabilities
from shoal.executor.thread import ComputeThread
from shoal.models.build.rope_scaling import RopeScaling
from shoal.models.checkpoint.mrope import Grids
from shoal.models.checkpoint.multimodal import Stretches
from shoal.testing.sim import model
from shoal.testing.sim.agenda import Agenda
from shoal.types import AdapterDigest, Codec, Exactness, Numerics, SessionId, Span


@dataclass(frozen=True, slots=True)
class StepCost:
    """What a step through a span takes, in seconds: so long, and so much more for each of its rows."""

    step_s: float = 0.2
    row_s: float = 0.002


KV_TOKENS = 4096

_ResultT = TypeVar("_ResultT")


class LoopThread(ComputeThread):
    """Runs what it is given at once, on the loop."""

    def __init__(self) -> None:
        pass

    def post(self, function: Callable[[], None]) -> None:
        function()

    async def run(self, function: Callable[[], _ResultT]) -> _ResultT:
        await trio.lowlevel.checkpoint()
        return function()

    def close(self) -> None:
        pass


@dataclass(eq=False, slots=True)
class _Cache:
    """One session's KV: of each block, its state at each position."""

    span: Span
    pages: Pages
    states: list[list[int]]

    @property
    def length(self) -> int:
        return len(self.states[0])

    def run(self, rows: Sequence[int], position: int) -> list[int]:
        """Cut the states back to ``position``, and run ``rows`` from there on."""
        for states in self.states:
            del states[position:]
        self.pages.resize(position + len(rows))
        return [self._run_row(row, position + index) for index, row in enumerate(rows)]

    def _run_row(self, hidden: int, position: int) -> int:
        for block, states in zip(range(self.span.start, self.span.end), self.states, strict=True):
            hidden = model.run_block(block, states[-1] if states else 0, hidden, position)
            states.append(hidden)
        return hidden


@dataclass(frozen=True, slots=True)
class _Step:
    session: SessionId
    cache: _Cache
    position: int
    payload: bytes
    rows: int
    wanted: int
    asked: float
    done: StepCallback


class SimEngine(Engine):
    """A node's span of the simulated model, one step after another."""

    def __init__(
        self, span: Span, agenda: Agenda, violations: list[str], cost: StepCost | None = None
    ) -> None:
        self.pool = PagePool(KV_TOKENS // PAGE)
        self.format = "fp32"
        self._span = span
        self._agenda = agenda
        self._violations = violations
        self._caches: dict[SessionId, _Cache] = {}
        self._cost = cost or StepCost()
        self._waiting: deque[_Step] = deque()
        self._busy = False
        self.forwards = 0
        self._share = 1.0
        self._busy_s = 0.0

    @property
    def share(self) -> float:
        return self._share

    @share.setter
    def share(self, share: float) -> None:
        self._share = share

    @property
    def busy_s(self) -> float:
        return self._busy_s

    @property
    def width(self) -> int:
        return model.WIDTH

    @property
    def numerics(self) -> Numerics:
        return Numerics(self.format, "auto", "rows")

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(batch=True, roll_back=True, exact=True)

    @property
    def sessions(self) -> int:
        return len(self._caches)

    @property
    def decode_steps(self) -> None:
        """Nothing here runs from bytes to bytes."""
        return None

    async def open(
        self, session: SessionId, span: Span | None = None, adapter: AdapterDigest | None = None
    ) -> None:
        await trio.lowlevel.checkpoint()  # whoever is cancelled here has taken nothing
        span = span or self._span
        if span.start < self._span.start or span.end > self._span.end:
            self._violations.append(f"a session for {span} at a node that has {self._span}")
        if session in self._caches:
            raise Busy("this session is open here already", tokens_free=self.tokens_free)
        self._caches[session] = _Cache(span, self.pool.promise(0), [[] for _ in range(len(span))])

    def grow(self, session: SessionId, tokens: int) -> None:
        self.pool.grow(self._caches[session].pages, tokens)

    def close(self, session: SessionId) -> None:
        cache = self._caches.pop(session, None)
        if cache is not None:
            cache.pages.resize(0)
            self.pool.forget(cache.pages)

    def submit(
        self,
        session: SessionId,
        position: int,
        payload: bytes | bytearray,
        codec: Codec,
        rows: int,
        wanted: int,
        reply: Codec,
        done: StepCallback,
        sequence_length: int = 0,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> None:
        cache = self._caches.get(session)
        if cache is None:
            raise UnknownSession("this session is not open here")
        step = _Step(session, cache, position, bytes(payload), rows, wanted, trio.current_time(), done)
        for waiting in [s for s in self._waiting if s.session == session and s.position >= position]:
            self._waiting.remove(waiting)
            waiting.done(Superseded("a later step goes back to before this one"))
        self._waiting.append(step)
        self._begin()

    def after(self, function: Callable[[], None]) -> None:
        function()

    async def settled(self, look: Callable[[], _ResultT]) -> _ResultT:
        await trio.lowlevel.checkpoint()
        return look()

    def _begin(self) -> None:
        """Start with the next step, unless one is under way."""
        if self._waiting and not self._busy:
            self._busy = True
            step = self._waiting.popleft()
            compute_s = self._cost.step_s + self._cost.row_s * step.rows
            self._busy_s += compute_s
            waited_s = trio.current_time() - step.asked
            self._agenda.after(compute_s, partial(self._end, step, compute_s, waited_s))

    def _end(self, step: _Step, compute_s: float, waited_s: float) -> None:
        self._run(step, compute_s, waited_s)
        self._agenda.after(compute_s * (1 / self._share - 1), self._rested)

    def _rested(self) -> None:
        self._busy = False
        self._begin()

    def _run(self, step: _Step, compute_s: float, waited_s: float) -> None:
        cache = step.cache
        self.forwards += 1
        if self._caches.get(step.session) is not cache:
            return
        hidden = model.unpack(step.payload)
        if step.position > cache.length or len(hidden) != step.rows:
            self._violations.append(
                f"{len(hidden)} of {step.rows} rows at {step.position}, where {cache.length} are cached"
            )
            step.done(StepFailed("the engine was asked for a step that cannot be"))
            return
        out = cache.run(hidden, step.position)
        payload = model.pack(out[step.rows - step.wanted :])
        step.done(StepOutput(payload, round(compute_s * 1e6), round(waited_s * 1e6)))


class SimEnds(EndsEngine):
    """The client's ends: the embedding, and a head that is certain of its token.

    Args:
        script: as :func:`model.script` makes it; what it does not know, the model chooses.
    """

    sliced = True
    bits: Exactness = "rows"
    stateless = False
    encoder = None
    tensor_bytes = 0
    rope_scaling = RopeScaling()

    def __init__(self, script: Mapping[int, int]) -> None:
        self.ends = self
        self.first = self.last = self.decode_steps = None
        self._script = script

    def embed(self, token_ids: Sequence[int], position: int) -> Floats:
        rows = [model.embed(token, position + index) for index, token in enumerate(token_ids)]
        return decode(model.pack(rows), "float32", len(rows), model.WIDTH)

    def heads(self, batch: Sequence[Floats]) -> list[Floats]:
        return [self._logits(hidden) for hidden in batch]

    async def head(
        self,
        session: Hashable,
        rows: int,
        hidden: Callable[[], Floats],
        then: Callable[[Floats], _ResultT],
    ) -> _ResultT:
        await trio.lowlevel.checkpoint()
        return then(self._logits(hidden()))

    def close(self, session: Hashable) -> None:
        pass

    def after(self, function: Callable[[], None]) -> None:
        function()

    def _logits(self, hidden: Floats) -> Floats:
        rows = model.unpack(hidden.tobytes())
        tokens = [self._script.get(row, model.choose(row)) for row in rows]
        logits = np.zeros((len(tokens), model.VOCAB), np.float32)
        logits[range(len(tokens)), tokens] = 1.0
        return logits
