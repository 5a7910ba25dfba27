"""One session at one hop: steps come in, run in their order, and what comes out goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import trio

from shoal.errors import Busy, ChannelClosed, ShoalError
from shoal.executor.engine import Engine, Forwarded
from shoal.net.channel import Channel
from shoal.types import PeerId, SessionId
from shoal.wire.messages import Failed, HopTime, Open, Step, shorten
from shoal.wire.session import Advance, HopSession

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
    measured: Callable[[Step, Forwarded], None]
    rules: HopSession = field(init=False)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __post_init__(self) -> None:
        self.rules = HopSession(self.opened, self.engine.module.width)
        self._put, self._steps = trio.open_memory_channel[tuple[Step, bytes, Advance]](QUEUE)

    @property
    def session(self) -> SessionId:
        return SessionId(self.opened.session)

    @property
    def sender(self) -> PeerId:
        """Who may send this session's steps."""
        return PeerId(self.opened.previous) if self.opened.previous else self.client.peer

    async def take(self, step: Step, payload: bytes) -> None:
        """Queue a step, or tell the client why not."""
        try:
            advance = self.rules.accept(step)
            try:
                self._put.send_nowait((step, payload, advance))
            except trio.WouldBlock:
                self.rules.forget(step.position)
                raise Busy(f"{QUEUE} steps of this session are waiting already") from None
        except ShoalError as error:
            await self.fail(step.number, error)

    async def run(self) -> None:
        """Run what is queued until the session is closed."""
        with self.scope:
            async for step, payload, advance in self._steps:
                try:
                    done = await self.engine.forward(
                        self.session,
                        advance.position,
                        payload,
                        step.codec,
                        step.rows,
                        self._rows_out(step),
                        step.codec,
                    )
                    self.measured(step, done)
                    await self._pass_on(step, done)
                except ChannelClosed as error:
                    await self.fail(None, error)
                    return
                except ShoalError as error:
                    self.rules.forget(advance.position)
                    await self.fail(step.number, error)

    async def fail(self, number: int | None, error: ShoalError) -> None:
        """Tell the client; when it is gone too, its channel's end has freed this session already."""
        if not self.client.closed:
            await self.client.send(
                Failed(self.opened.session, number, self.opened.hop, error.code, shorten(error.message))
            )

    async def end(self, error: ShoalError | None) -> None:
        """Stop, and when it was not the client's wish, tell it why."""
        self.scope.cancel()
        if error is not None:
            await self.fail(None, error)

    def _rows_out(self, step: Step) -> int:
        return step.tokens if self.next is not None else step.wanted

    async def _pass_on(self, step: Step, done: Forwarded) -> None:
        time = HopTime(self.opened.hop, done.compute_us, done.waiting_us)
        onward = msgspec.structs.replace(step, rows=self._rows_out(step), times=(*step.times, time))
        await (self.next or self.client).send(onward, done.payload)
