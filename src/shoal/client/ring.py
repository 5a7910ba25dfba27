"""The blocks of a model, wherever they are: hidden states go in at the first hop and come back from the last.

Each hop sends straight to the next, so a step costs N+1 one-way latencies, not 2N. Several steps may be on
their way; results come back in the order in which the steps were sent.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import trio

from shoal.errors import (
    ChannelClosed,
    DeadlineExceeded,
    LocalProtocolError,
    RemoteProtocolError,
    ShoalError,
    from_code,
)
from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.types import CarrierName, Codec, Format, ModelShape, PeerAddress, PeerId, SessionId, Span
from shoal.wire.codec import CodecChooser
from shoal.wire.messages import Close, Failed, HopTime, Message, NextHop, Open, Opened, Refused, Step, shorten
from shoal.wire.session import ClientSession, Issued

IN_FLIGHT = 32


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One stage of a route with what is needed to reach it."""

    address: PeerAddress
    span: Span

    def __str__(self) -> str:
        return f"the hop {self.address.peer} (blocks {self.span})"


@dataclass(frozen=True, slots=True)
class Returned:
    """What one step brought back."""

    payload: bytes
    """``rows`` rows of hidden states in ``codec``."""
    codec: Codec
    rows: int
    position: int
    times: tuple[HopTime, ...]


class Ring:
    """One session over one route. Made by :meth:`open`; closed by :meth:`aclose`."""

    def __init__(
        self,
        pool: ChannelPool,
        shape: ModelShape,
        route: Sequence[RouteHop],
        *,
        format: Format,
        wire: Codec | Literal["auto"],
        tokens: int,
        step_timeout_s: float,
    ) -> None:
        self.session = SessionId(os.urandom(16))
        self.route = tuple(route)
        self.rules = ClientSession(tokens, IN_FLIGHT)
        self._pool = pool
        self._shape = shape
        self._format: Format = format
        self._codec = CodecChooser(format, wire)
        self._step_timeout_s = step_timeout_s
        self._channels: list[Channel | None] = [None] * len(route)
        self._answers = [trio.Event() for _ in route]
        self._arrived: deque[Returned | ShoalError] = deque()
        self._news = trio.Event()
        self._lost: ShoalError | None = None
        self._giving_up = threading.Lock()  # a step that is given up is not sent after it

    @property
    def carriers(self) -> list[CarrierName]:
        """How each hop is reached from here."""
        return [channel.carrier for channel in self._channels if channel]

    async def open(self, timeout_s: float) -> None:
        """Open the session on every hop at once.

        Raises:
            HopRefused: a hop cannot be reached, has no room, or serves something else; names the hop.
        """
        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for index in range(len(self.route)):
                    nursery.start_soon(self._ask, index, timeout_s)
        if self._lost is not None:
            raise self._lost
        for hop, answer in zip(self.route, self._answers, strict=True):
            if not answer.is_set():
                raise HopRefused(
                    hop.address.peer, DeadlineExceeded(f"{hop.address.peer} did not open the session in time")
                )

    @property
    def format(self) -> Format:
        """How every hop holds its weights."""
        return self._format

    def codec(self, rows: int) -> Codec:
        """How the next step's hidden states, ``rows`` of them, are to be encoded."""
        first = self._channels[0]
        return self._codec.choose(first.bytes_s if first else None, rows, self._shape.hidden_size)

    def issue(self, tokens: int, wanted: int) -> Issued:
        """Number the next step, which :meth:`launch` sends.

        Raises:
            LocalProtocolError: it does not fit into the session.
            ShoalError: the session is lost.
        """
        if self._lost is not None:
            raise self._lost
        return self.rules.issue(tokens, wanted)

    def launch(self, issued: Issued, payload: bytes, codec: Codec) -> None:
        """Send the hidden states of a step from any thread, unless it was given up meanwhile.

        A channel that has gone is no error here: :meth:`receive` tells that the session is lost.
        """
        channel, step = self._made(issued, codec)
        with self._giving_up, suppress(ChannelClosed):
            if self.rules.flies(issued):
                channel.post(step, payload)

    async def send(self, payload: bytes, codec: Codec, tokens: int, wanted: int) -> None:
        """Send ``tokens`` rows of hidden states, encoded in ``codec``, on their way.

        Raises:
            LocalProtocolError: they do not fit into the session.
            ShoalError: the session is lost.
        """
        channel, step = self._made(self.issue(tokens, wanted), codec)
        await channel.send(step, payload)

    def _made(self, issued: Issued, codec: Codec) -> tuple[Channel, Step]:
        step = Step(
            self.session,
            issued.number,
            issued.position,
            issued.tokens,
            issued.wanted,
            codec,
            issued.tokens,
            self._shape.hidden_size,
        )
        first = self._channels[0]
        if first is None:
            raise LocalProtocolError("a step before the session is open")
        return first, step

    async def receive(self) -> Returned:
        """The result of the oldest step in flight.

        Raises:
            DeadlineExceeded: nothing came within the step's time.
            ShoalError: the step failed, or the session is lost.
        """
        with trio.move_on_after(self._step_timeout_s):
            while not self._arrived:
                if self._lost is not None:
                    raise self._lost
                await self._news.wait()
            result = self._arrived.popleft()
            if isinstance(result, ShoalError):
                raise result
            return result
        raise DeadlineExceeded(
            f"no result within {self._step_timeout_s:.0f} s",
            check="the nodes of the route: shoal status",
        )

    def roll_back(self, position: int) -> None:
        """Go on from ``position``: with the next step, every hop forgets what it computed beyond it."""
        with self._giving_up:
            self.rules.roll_back(position)
        kept = [r for r in self._arrived if isinstance(r, Returned) and r.position < position]
        self._arrived = deque(kept)

    async def aclose(self) -> None:
        """Tell every hop to free its KV. A hop that cannot be told frees it when the channel ends."""
        for channel in self._channels:
            if channel is not None and not channel.closed:
                with suppress(ChannelClosed):
                    await channel.send(Close(self.session))

    def deliver(self, channel: Channel, message: Message, payload: bytes) -> None:
        """Take what a hop of this session has sent."""
        hop = self._hop_of(channel)
        match message:
            case Opened():
                self._answers[hop].set()
            case Refused():
                error = from_code(
                    message.code,
                    message.message,
                    retry_after_s=message.retry_after_s,
                    tokens_free=message.tokens_free,
                )
                self.lose(HopRefused(self.route[hop].address.peer, error))
            case Step():
                self._returned(hop, message, payload)
            case Failed():
                self._failed(hop, message)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} from a hop")

    def lost_channel(self, channel: Channel, reason: str) -> None:
        """A channel has ended; when a hop of this session was behind it, the session is lost."""
        for hop, mine in zip(self.route, self._channels, strict=False):
            if mine is channel:
                self.lose(HopLost(hop, reason))

    def lose(self, error: ShoalError) -> None:
        """The session is over: everyone who waits for it hears why."""
        if self._lost is None:
            self._lost = error
            for answer in self._answers:
                answer.set()
            self._news.set()

    async def _ask(self, index: int, timeout_s: float) -> None:
        hop = self.route[index]
        onward = self.route[index + 1].address if index + 1 < len(self.route) else None
        message = Open(
            self.session,
            self._shape.digest,
            self._format,
            hop.span.start,
            hop.span.end,
            self.rules.tokens,
            index,
            self.route[index - 1].address.peer if index else None,
            NextHop.of(onward) if onward else None,
        )
        try:
            channel = await self._pool.get(hop.address, deadline_s=timeout_s)
            self._channels[index] = channel
            await channel.send(message)
        except ShoalError as error:
            self.lose(HopRefused(hop.address.peer, error))
        else:
            await self._answers[index].wait()

    def _hop_of(self, channel: Channel) -> int:
        for index, mine in enumerate(self._channels):
            if mine is channel:
                return index
        raise RemoteProtocolError(f"{channel.peer} is no hop of this session")

    def _returned(self, hop: int, message: Step, payload: bytes) -> None:
        if hop != len(self.route) - 1:
            raise RemoteProtocolError("a result from a hop that is not the last")
        if message.width != self._shape.hidden_size:
            raise RemoteProtocolError(f"a result of width {message.width}")
        issued = self.rules.returned(message)
        if issued is not None:
            self._codec.note(issued.tokens, max((time.compute_us for time in message.times), default=0))
            self._tell(Returned(payload, message.codec, message.rows, issued.position, message.times))

    def _failed(self, hop: int, message: Failed) -> None:
        if message.number is not None:
            with self._giving_up:
                known = self.rules.failed(message.number)
            if known:
                self._tell(from_code(message.code, f"{self.route[hop]}: {message.message}"))
            return
        # A hop that has lost the way to the next one says so; the one that is gone cannot.
        gone = self.route[min(hop + (message.code == ChannelClosed.code), len(self.route) - 1)]
        self.lose(HopLost(gone, message.message))

    def _tell(self, result: Returned | ShoalError) -> None:
        self._arrived.append(result)
        self._news.set()
        self._news = trio.Event()


class HopRefused(ShoalError):
    """A hop did not take part; ``error`` says why, ``peer`` which."""

    code = "hop_refused"

    def __init__(self, peer: PeerId, error: ShoalError) -> None:
        super().__init__(error.message, check=error.check, next_command=error.next_command)
        self.peer = peer
        self.error = error


class HopLost(ChannelClosed):
    """A hop went away in the middle of a session."""

    def __init__(self, hop: RouteHop, reason: str) -> None:
        super().__init__(
            shorten(f"{hop} is gone: {reason}"),
            check="shoal status",
            next_command="ask again: another route is taken",
        )
        self.peer = hop.address.peer
