"""One session at one hop: steps come in, run in their order, and what comes out goes on.

A step is given to the engine by the task that received it, and sent on by the engine's own thread: between a
hop's socket and the next one's lie two changes of thread and no turn of the event loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import msgspec
import trio

from shoal.errors import Busy, ChannelClosed, ShoalError
from shoal.executor.engine import Engine, Forwarded
from shoal.net.channel import Channel
from shoal.types import Codec, PeerId, SessionId
from shoal.wire.codec import CodecChooser
from shoal.wire.messages import Failed, HopTime, Open, Step, shorten
from shoal.wire.session import HopSession

QUEUE = 64
"""Steps of one session that may wait at a hop."""


@dataclass(eq=False)
class Hop:
    """A session as this node sees it.

    Steps are taken from ``previous`` (or the client) alone, and everything else from the client alone.
    """

    opened: Open
    client: Channel
    next: Channel | None
    """Where results go; ``None`` at the last hop, which answers the client."""
    engine: Engine
    codec: CodecChooser
    measured: Callable[[Step, Forwarded], None]
    """Told of each step on the engine's thread."""
    failed: Callable[[ShoalError], None] = lambda _: None
    """Told of each step, and of a session, that came to nothing."""
    rules: HopSession = field(init=False)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __post_init__(self) -> None:
        self.rules = HopSession(self.opened, self.engine.width)
        self._loop = trio.lowlevel.current_trio_token()
        self._taken = 0  # by the event loop
        self._seen_to = 0  # by the engine's thread
        # Steps for which there is no room on the way onward: what comes out would have nowhere to wait.
        self._holding = 0
        self._hold, self._held = trio.open_memory_channel[tuple[Step, bytes]](QUEUE)

    @property
    def session(self) -> SessionId:
        return SessionId(self.opened.session)

    @property
    def waiting(self) -> int:
        """Steps that are here and have not been sent on."""
        return self._taken - self._seen_to

    @property
    def sender(self) -> PeerId:
        """Who may send this session's steps."""
        return PeerId(self.opened.previous) if self.opened.previous else self.client.peer

    def take(self, step: Step, payload: bytes) -> None:
        """Hand a step to the engine, or tell the client why not."""
        try:
            if self.waiting >= QUEUE:
                raise Busy(f"{QUEUE} steps of this session are waiting already")
            self.rules.accept(step)
        except ShoalError as error:
            self.fail(step.number, error)
            return
        self._taken += 1
        if self._holding or self._onward.full:
            self._holding += 1
            self._hold.send_nowait((step, payload))
        else:
            self._submit(step, payload)

    async def run(self) -> None:
        """Take part until the session is closed."""
        with self.scope:
            async for step, payload in self._held:
                await self._onward.wait_room()
                self._holding -= 1
                self._submit(step, payload)

    def fail(self, number: int | None, error: ShoalError) -> None:
        """Tell the client; when it is gone too, its channel's end has freed this session already."""
        self.failed(error)
        failed = Failed(self.opened.session, number, self.opened.hop, error.code, shorten(error.message))
        with suppress(ChannelClosed):
            self.client.post(failed)

    def end(self, error: ShoalError | None) -> None:
        """Stop, and when it was not the client's wish, tell it why."""
        self.scope.cancel()
        if error is not None:
            self.fail(None, error)

    @property
    def _onward(self) -> Channel:
        return self.next or self.client

    def _submit(self, step: Step, payload: bytes) -> None:
        rows = step.tokens if self.next is not None else step.wanted
        reply = self.codec.choose(self._onward.bytes_s, rows, step.width)
        done = partial(self._done, step, rows, reply)
        self.engine.submit(self.session, step.position, payload, step.codec, step.rows, rows, reply, done)

    def _done(self, step: Step, rows: int, reply: Codec, result: Forwarded | ShoalError) -> None:
        """Send the result on its way. On the engine's thread, so that nothing stands between.

        The event loop hears of failures alone: to wake it for each step would cost as much as the sending.
        """
        self._seen_to += 1
        if isinstance(result, Forwarded):
            time = HopTime(self.opened.hop, result.compute_us, result.waiting_us)
            onward = msgspec.structs.replace(step, codec=reply, rows=rows, times=(*step.times, time))
            try:
                self._onward.post(onward, result.payload)
            except ChannelClosed as error:
                result = error
            else:
                self.measured(step, result)
                self.codec.note(step.tokens, result.compute_us)
                return
        with suppress(trio.RunFinishedError):  # the node has ended
            self._loop.run_sync_soon(self._failed, step, result)

    def _failed(self, step: Step, error: ShoalError) -> None:
        if isinstance(error, ChannelClosed):
            self.end(error)
        else:
            self.rules.forget(step.position)
            self.fail(step.number, error)
