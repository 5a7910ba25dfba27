"""A span at work for many sessions: who may have how much KV, and steps in and out as bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from shoal.errors import Busy, ShoalError, StepFailed, UnknownSession
from shoal.executor.arrays import Floats
from shoal.executor.batcher import LONGEST_REST_S, Batcher, ForwardOutput, Job, JobSlice
from shoal.executor.codecs import decode, encode
from shoal.executor.kernels.decode_steps import RanTimes
from shoal.executor.pages import PAGE, PagePool
from shoal.executor.runner import Capabilities, KvState, Runner, SessionRows
from shoal.executor.thread import ComputeThread
from shoal.models.checkpoint.mrope import Grids
from shoal.models.checkpoint.multimodal import Stretches
from shoal.types import AdapterDigest, Codec, Format, Kv, Numerics, SessionId, Span
from shoal.wire.training import Train

if TYPE_CHECKING:
    from shoal.executor.proofs.tracer import BlockTracer
    from shoal.executor.training.train import TrainingRun

_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What came out of a step at this hop."""

    payload: bytes
    compute_us: int
    """Time of the forwards that the step was part of."""
    waiting_us: int
    """The rest of its time here."""


StepCallback = Callable[[StepOutput | ShoalError], None]


@dataclass(eq=False, slots=True, kw_only=True)
class _Step(Job):
    state: KvState
    position: int
    sequence_length: int
    mutual: Stretches
    grids: Grids

    def uncut(self, rows: int) -> int:
        end = self.position + self.done + rows
        inside = next((last for first, last in self.mutual if first < end < last), end)
        return inside - self.position - self.done


class Engine:
    """Forwards of one span for many sessions, within the pages of a pool.

    What is ready of many sessions runs together (:mod:`shoal.executor.batcher`). One session's KV is never
    visible to another.
    """

    def __init__(
        self, runner: Runner, pool: PagePool, thread: ComputeThread, *, format: Format, kv: Kv = "auto"
    ) -> None:
        self.runner = runner
        self.pool = pool
        self.format: Format = format
        self._kv: Kv = kv
        self._thread = thread
        self._batcher = Batcher[_Step](
            self._forward, thread, sliced=runner.capabilities.batch, bits=runner.bits
        )
        self._sessions: dict[SessionId, KvState] = {}
        self.decode_steps = runner.decode_steps()
        """What runs decode steps from bytes to bytes, where the runner can."""

    @property
    def width(self) -> int:
        """Elements of one token's hidden states."""
        return self.runner.width

    @property
    def numerics(self) -> Numerics:
        """By what its results have the bits that they have."""
        return Numerics(self.format, self._kv, self.runner.bits)

    @property
    def capabilities(self) -> Capabilities:
        """What its runner can do."""
        return self.runner.capabilities

    @property
    def tokens(self) -> int:
        """Tokens of KV that all sessions together may reserve."""
        return self.pool.tokens

    @property
    def tokens_free(self) -> int:
        """Tokens of KV that are not reserved."""
        return self.pool.tokens_free

    @property
    def sessions(self) -> int:
        """Sessions that are open."""
        return len(self._sessions)

    @property
    def share(self) -> float:
        """Share of the time that forwards may take, in (0, 1]."""
        return self._batcher.share

    @share.setter
    def share(self, share: float) -> None:
        self._batcher.share = share

    @property
    def busy_s(self) -> float:
        """Seconds that forwards took in all."""
        return self._batcher.busy_s

    async def train(self, message: Train, payload: bytes, within_s: float) -> bytes:
        """Answer a question of tuning, a sequence at a time, in turn with forwards of sessions.

        While sessions are open, it rests after each sequence for as long as that took, though not for ever:
        half of the time is theirs.

        Args:
            within_s: what computing it may take.

        Raises:
            NotAllowed: no gradients go through these blocks.
            DigestMismatch: the adapter does not fit them.
            DeadlineExceeded: it took longer.
            StepFailed: what came out is not finite.
            Busy: memory is short.
        """
        from shoal.executor.training.payload import read_work  # noqa: PLC0415 - torch, which few need

        def begin() -> TrainingRun:
            return self.runner.train(Span(message.start, message.end), read_work(message, payload, within_s))

        run, _ = await self._beside(begin)
        while True:
            done, seconds = await self._beside(run.advance)
            if done:
                break
            rest_s = max(self._batcher.rest_s(seconds), seconds if self._sessions else 0.0)
            await trio.sleep(min(rest_s, LONGEST_REST_S))
        found, _ = await self._beside(run.result)
        return b"".join(part.tobytes() for part in found)

    async def _beside(self, function: Callable[[], _ResultT]) -> tuple[_ResultT, float]:
        """What something other than a forward returns, on the thread that computes, and its seconds."""
        from shoal.executor.device.torch_devices import shortage  # noqa: PLC0415 - as above

        def run() -> tuple[_ResultT, float]:
            began = time.perf_counter()
            try:
                found = function()
            except (RuntimeError, MemoryError) as error:
                if (short := shortage(error, "this node")) is not None:
                    raise short from error
                raise
            finally:
                seconds = self._batcher.note_other(began, time.perf_counter())
            return found, seconds

        return await self._thread.run(run)

    async def open(
        self, session: SessionId, span: Span | None = None, adapter: AdapterDigest | None = None
    ) -> None:
        """Take a session in, for the whole span or a ``span`` inside of it, with an adapter of the runner's
        or without. It has no KV yet.

        Raises:
            Busy: it is open here already.
        """
        if session in self._sessions:
            raise Busy("this session is open here already", tokens_free=self.tokens_free)
        make = partial(self.runner.open, span or self.runner.span, self.pool.promise(0), adapter)
        self._sessions[session] = await self._thread.run(make)

    def grow(self, session: SessionId, tokens: int) -> None:
        """Reserve KV, so that a session's next steps may take it to ``tokens`` tokens.

        Raises:
            Busy: there is no room; says how much there is.
            UnknownSession: the session is not open.
        """
        self.pool.grow(self._state(session).pages, tokens)

    def close(self, session: SessionId) -> None:
        """Give the session's KV back. A session that is not open is no error."""
        state = self._sessions.pop(session, None)
        if state is not None:
            # The pages go back on the thread that computes, before its next forward: whoever is promised them
            # now takes them after that.
            self._batcher.end(session, partial(state.pages.resize, 0))
            self.pool.forget(state.pages)

    def set_aside(self, session: SessionId) -> KvState:
        """End a session of which nothing waits or runs, and keep its KV.

        Raises:
            UnknownSession: the session is not open.
        """
        state = self._state(session)
        del self._sessions[session]
        self._batcher.end(session, lambda: None)
        return state

    def take_up(self, session: SessionId, state: KvState) -> None:
        """Open a session with KV that was set aside.

        Raises:
            Busy: it is open here already.
        """
        if session in self._sessions:
            raise Busy("this session is open here already", tokens_free=self.tokens_free)
        self._sessions[session] = state

    def give_up(self, state: KvState) -> None:
        """Give back KV that was set aside."""
        # As in close.
        self._batcher.end(None, partial(state.pages.resize, 0))
        self.pool.forget(state.pages)

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
        """Ask for a step and do not wait. Steps of one session run in the order asked, but for those that
        still wait and begin at ``position`` or beyond: this one supersedes them.

        What it takes the session to must have been reserved (:meth:`grow`).

        Runs ``rows`` tokens from ``position`` on; keeps the last ``wanted`` rows of what comes out. KV that
        is longer than ``position`` is rolled back to it first.

        Args:
            payload: ``rows × width`` hidden states in ``codec``.
            reply: how what comes out is encoded.
            done: told at once what became of it, on the thread that computes, so that it leaves without a
                turn of the event loop; never told of a session that is closed. Errors, of which the same step
                may be sent again, are CannotRollBack: the KV cannot return to ``position``, and StepFailed:
                the forward failed, or what came out is not finite. Superseded is no fault: nobody waits for
                the step any more.
            sequence_length: tokens of the sequence that the step is a piece of; 0: it ends with the step.
            mutual: stretches of positions, in the step, whose tokens all see each other.
            grids: pictures that begin before its end, by which rows have three positions.

        Raises:
            UnknownSession: the session is not open.
        """
        state = self._state(session)

        def finish(job: Job, out: Floats) -> None:
            # On the thread that computes: the loop never touches the numbers of a payload.
            encoded = encode(out, reply)
            compute_s = job.compute_s
            waiting_s = max(0.0, time.perf_counter() - job.asked - compute_s)
            done(StepOutput(encoded, round(compute_s * 1e6), round(waiting_s * 1e6)))

        prepare = partial(decode, payload, codec, rows, self.width)
        self._batcher.submit(
            _Step(
                session,
                rows,
                wanted,
                prepare,
                finish,
                done,
                state=state,
                position=position,
                sequence_length=sequence_length,
                mutual=mutual,
                grids=grids,
            ),
            lambda waiting: waiting.position >= position,
        )

    def borrow(self) -> bool:
        """As :meth:`Batcher.borrow`, to use ``decode_steps``."""
        return self._batcher.borrow()

    def give_back(self) -> None:
        """Let the thread that computes go on."""
        self._batcher.give_back()

    @property
    def wait_s(self) -> float:
        """For so long a forward waits for sessions that are nearly here."""
        return self._batcher.wait_s

    def note_decoded(self, sessions: Sequence[SessionId], times: RanTimes) -> None:
        """A token of each of these sessions has run together, in the place of the thread that computes."""
        self._batcher.note_run(sessions, times.asked, times.began, times.ended)
        for session in sessions:
            if (state := self._sessions.get(session)) is not None:
                state.length += 1

    def prepare(self, seat: int, session: SessionId, cached: int, **how: Any) -> None:
        """Let a session's next step run by ``decode_steps``, if the KV is as far as ``cached`` tokens and has
        a page for one more; else not. In the place of the thread that computes, or on it.

        Args:
            how: as of :meth:`DecodeSteps.prepare`.
        """
        state, decode_steps = self._sessions.get(session), self.decode_steps
        if state is None or decode_steps is None:
            return
        if state.length == cached:
            with suppress(Busy):  # what is not reserved yet is, before the step runs the ordinary way
                state.pages.resize(cached + 1)
        if state.length != cached or PAGE * len(state.pages.numbers) <= cached:
            decode_steps.hold(seat)
            return
        rhythm = self._batcher.rhythm(session)
        decode_steps.note_rhythm(seat, rhythm.left, rhythm.away)
        first, used = self.runner.span.start, state.span
        blocks = range(used.start - first, used.end - first)
        decode_steps.prepare(
            seat, length=cached, pages=state.pages, blocks=blocks, adapter=state.adapter, **how
        )

    def after(self, function: Callable[[], None]) -> None:
        """Have ``function`` run once all that ran together are done. To be called when one of them is."""
        self._batcher.after(function)

    async def settled(self, look: Callable[[], _ResultT]) -> _ResultT:
        """What ``look`` returns, on the thread that computes, when all that it has computed is done with."""
        return await self._thread.run(look)

    async def traced(
        self, session: SessionId, rows: int, look: Callable[[BlockTracer, KvState], _ResultT]
    ) -> _ResultT:
        """What ``look`` makes of a session's blocks laid open, in turn with forwards of sessions.

        The session's own KV is read and never written.

        Args:
            rows: the most of a window that is run again.

        Raises:
            Busy: there is no room for the window's KV.
            NotAllowed: there are no proofs of what these blocks compute.
            UnknownSession: the session is not open.
        """
        state, tracer = self._state(session), self.runner.tracer()
        own = self.pool.promise(rows)

        def run() -> _ResultT:
            began = time.perf_counter()
            try:
                own.resize(rows)
                return look(tracer.over(own), state)
            finally:
                own.resize(0)
                self._batcher.note_other(began, time.perf_counter())

        try:
            return await self._thread.run(run)
        finally:
            self.pool.forget(own)

    def _state(self, session: SessionId) -> KvState:
        state = self._sessions.get(session)
        if state is None:
            raise UnknownSession("this session is not open here")
        return state

    def _forward(self, batch: Sequence[JobSlice[_Step]]) -> list[ForwardOutput]:
        return self.runner.forward([_rows(piece.job, piece) for piece in batch])


def _rows(step: _Step, piece: JobSlice[_Step]) -> SessionRows:
    """Raises StepFailed: the piece cuts rows from others that they see."""
    position = step.position + piece.first
    end = position + len(piece.hidden)
    inside = tuple((first, last) for first, last in step.mutual if first < end and last > position)
    if any(first < position or last > end for first, last in inside):
        raise StepFailed("rows are cut from others that they see")
    return SessionRows(step.state, position, piece.hidden, step.sequence_length, inside, step.grids)
