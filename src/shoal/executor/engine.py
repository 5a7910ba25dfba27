"""A span at work: sessions with their KV, steps one after another on the torch thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from shoal.errors import Busy, ShoalError, StepFailed, UnknownSession
from shoal.executor.codecs import decode, encode
from shoal.executor.thread import TorchThread
from shoal.models.span import Cache, SpanModule
from shoal.types import Codec, Format, SessionId, Span


@dataclass(slots=True)
class _Held:
    """One session's KV: the cache, and the tokens it may grow to."""

    cache: Cache
    module: SpanModule
    tokens: int


@dataclass(frozen=True, slots=True)
class Forwarded:
    """What came out of a step at this hop."""

    payload: bytes
    compute_us: int
    waiting_us: int


Done = Callable[[Forwarded | ShoalError], None]
"""Takes what became of a step, on the executor's thread: it returns soon and does not raise."""


class Engine:
    """Forwards of one span for many sessions, within a budget of KV tokens.

    Steps run in the order in which they are asked for. One session's cache is never visible to another.
    """

    def __init__(
        self, module: SpanModule, thread: TorchThread, *, format: Format, tokens: int, max_sessions: int
    ) -> None:
        self.module = module
        self.format: Format = format
        self.tokens = tokens
        """Tokens of KV that all sessions together may reserve."""
        self._thread = thread
        self._max_sessions = max_sessions
        self._sessions: dict[SessionId, _Held] = {}
        self._reserved = 0

    @property
    def tokens_free(self) -> int:
        return self.tokens - self._reserved

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    async def open(self, session: SessionId, tokens: int, span: Span | None = None) -> None:
        """Reserve KV for ``tokens`` tokens in the module's span, or in a ``span`` inside of it.

        Raises:
            Busy: there is no room; says how much there is.
        """
        if session in self._sessions:
            raise Busy("this session is open here already", tokens_free=self.tokens_free)
        if len(self._sessions) >= self._max_sessions:
            raise Busy(f"all {self._max_sessions} sessions are taken", tokens_free=self.tokens_free)
        if tokens > self.tokens_free:
            raise Busy(
                f"no room for {tokens} tokens of KV, {self.tokens_free} of {self.tokens} are free",
                tokens_free=self.tokens_free,
            )
        self._reserved += tokens
        try:
            part = self.module.part
            module = self.module if span is None else await self._thread.run(lambda: part(span))
        except BaseException:
            self._reserved -= tokens
            raise
        self._sessions[session] = _Held(module.new_cache(), module, tokens)

    def close(self, session: SessionId) -> None:
        """Give the session's KV back. A session that is not open is no error."""
        held = self._sessions.pop(session, None)
        if held is not None:
            self._reserved -= held.tokens

    def submit(
        self,
        session: SessionId,
        position: int,
        payload: bytes | bytearray,
        codec: Codec,
        rows: int,
        wanted: int,
        reply: Codec,
        done: Done,
    ) -> None:
        """Ask for a step and do not wait. Steps of one session run in the order asked.

        Runs ``rows`` tokens from ``position`` on; keeps the last ``wanted`` rows of what comes out.

        Args:
            payload: ``rows × width`` hidden states in ``codec``.
            reply: how what comes out is encoded.
            done: told at once what became of it, so that it leaves without a turn of the event loop; never
                told of a session that is closed. Errors, of which the same step may be sent again, are
                CannotRollBack: the cache cannot return to ``position``, and StepFailed: the forward failed,
                or what came out is not finite.

        A cache longer than ``position`` is rolled back to it first.

        Raises:
            UnknownSession: the session is not open.
        """
        held = self._sessions.get(session)
        if held is None:
            raise UnknownSession("this session is not open here")
        asked = time.perf_counter_ns()

        def work() -> None:
            if self._sessions.get(session) is held:
                done(step())

        def step() -> Forwarded | ShoalError:
            began = time.perf_counter_ns()
            try:
                hidden = decode(payload, codec, rows, self.module.width)
                out = encode(_forward(held, position, hidden, wanted), reply)
            except ShoalError as error:
                return error
            ended = time.perf_counter_ns()
            return Forwarded(out, (ended - began) // 1000, (began - asked) // 1000)

        self._thread.post(work)


def _forward(held: _Held, position: int, hidden: torch.Tensor, wanted: int) -> torch.Tensor:
    try:
        out = held.module.forward(hidden[None].to(held.module.dtype), held.cache, position)
    except ShoalError:
        raise
    except Exception as error:
        # What a model's own code may raise is listed nowhere. It ends this step, never the node.
        raise StepFailed(f"the forward failed: {type(error).__name__}: {error}") from error
    return out[0, out.shape[1] - wanted :].float().cpu()
