"""A member of a swarm that lies: it announces what it likes, and does as it is told with what it is sent."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import msgspec
import trio

from shoal.errors import ShoalError
from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.swarm.announcement import Served
from shoal.swarm.member import Member
from shoal.types import Codec
from shoal.wire.messages import (
    Failed,
    Locate,
    Located,
    Message,
    Open,
    Opened,
    Refused,
    Reroute,
    Rerouted,
    Step,
)
from shoal.wire.payload import declared_bytes, hidden_states

ROOM = 1 << 20
MUCH = 1 << 40

Behaviour = Callable[["Liar", Channel, Message, bytes], Awaitable[None]]
"""What a liar does with a message."""


class Liar:
    """See :func:`lying`."""

    def __init__(self, network: Network, member: Member, does: Behaviour) -> None:
        self.peer = network.peer
        self.member = member
        self.does = does
        self.heard = Counter[str]()
        """Messages, by kind."""
        self.sessions: dict[bytes, tuple[Channel, Open]] = {}
        self.pool = ChannelPool(network, self._handle, lambda channel, reason: None)

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        self.heard[type(message).__name__] += 1
        if isinstance(message, Open):
            self.sessions[message.session] = channel, message
        with suppress(ShoalError):
            await self.does(self, channel, message, payload)

    async def onward(self, session: bytes) -> Channel:
        """The channel to the hop after it."""
        opened = self.sessions[session][1]
        assert opened.next is not None
        return await self.pool.get(opened.next.address(), deadline_s=2.0)


@asynccontextmanager
async def lying(
    network: Network, member: Member, like: Served, does: Behaviour, **changes: Any
) -> AsyncGenerator[Liar]:
    """A running liar.

    Args:
        member: of ``network``, running.
        like: an honest announcement; the liar's is the same with ``changes``: as quick and roomy as may be.
    """
    better: dict[str, Any] = {
        "tokens": ROOM,
        "tokens_free": ROOM,
        "sessions": 0,
        "step_ms": 0.001,
        "wait_ms": 0.0,
        "speed": 1e12,
    }
    served = msgspec.structs.replace(like, **(better | changes))
    liar = Liar(network, member, does)
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(liar.pool.run, accept=True))
        member.served = lambda: served
        await member.announce()
        yield liar
        nursery.cancel_scope.cancel()


async def opens(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Takes every session, and does nothing in it but say that all went well."""
    match message:
        case Open():
            channel.reply(Opened(message.session, ROOM))
        case Locate():
            channel.reply(Located(message.session, MUCH, MUCH))
        case Reroute():
            channel.reply(Rerouted(message.session, kept=True))
        case _:
            pass


async def refuses(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Has no room, ever."""
    if isinstance(message, Open):
        channel.reply(Refused(message.session, "busy", "no room, ever", 1.0))


async def says_nothing(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Answers pings alone."""


async def calls_next_gone_at_once(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Refuses, and says that the hop after it cannot be reached."""
    if isinstance(message, Open):
        gone = message.next.peer if message.next else None
        channel.reply(Refused(message.session, "channel_closed", "it is gone", 0.0, gone=gone))


async def calls_next_gone(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Says of the hop after it that it went, at each step."""
    await opens(liar, channel, message, payload)
    if isinstance(message, Step):
        client, opened = liar.sessions[message.session]
        gone = opened.next.peer if opened.next else None
        client.send_now(Failed(message.session, None, opened.hop, "channel_closed", "it is gone", gone))


async def keeps_what_it_has(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Is at work on each step for ever."""
    if isinstance(message, Locate):
        channel.reply(Located(message.session, MUCH, 0))
    else:
        await opens(liar, channel, message, payload)


async def denies_what_it_got(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Has never been sent a step, if one asks it."""
    if isinstance(message, Locate):
        channel.reply(Located(message.session, 0, 0))
    else:
        await opens(liar, channel, message, payload)


async def creeps(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Has always come a little further, if one asks it, and never to an end."""
    if isinstance(message, Locate):
        liar.heard["crept"] += 1
        channel.reply(Located(message.session, liar.heard["crept"], liar.heard["crept"] - 1))
    else:
        await opens(liar, channel, message, payload)


def opens_after(pause_s: float) -> Behaviour:
    """Takes its time to take a session, and does nothing in it then."""

    async def does(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
        if isinstance(message, Open):
            await trio.sleep(pause_s)
        await opens(liar, channel, message, payload)

    return does


async def fails_blamelessly(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Has always just lost the session."""
    await opens(liar, channel, message, payload)
    if isinstance(message, Step):
        client, opened = liar.sessions[message.session]
        client.send_now(Failed(message.session, message.number, opened.hop, "unknown_session", "it is lost"))


async def cannot_go_back(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Says of every step that its cache cannot go back."""
    await opens(liar, channel, message, payload)
    if isinstance(message, Step):
        client, opened = liar.sessions[message.session]
        client.send_now(Failed(message.session, message.number, opened.hop, "cannot_roll_back", "no"))


async def hangs_up_on_hops(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
    """Takes sessions from clients, and lets no hop send it a step."""
    await opens(liar, channel, message, payload)
    if isinstance(message, Step) and liar.sessions[message.session][0] is not channel:
        channel.close("I do not speak with you")


def recodes(codec: Codec) -> Behaviour:
    """Sends zeros on for each step, as if it had run it, in another codec than the session's."""

    async def does(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
        await opens(liar, channel, message, payload)
        if isinstance(message, Step) and liar.sessions[message.session][1].next is not None:
            hidden = hidden_states(codec, message.hidden.rows, message.hidden.width)
            way = await liar.onward(message.session)
            await way.send(msgspec.structs.replace(message, tensors=hidden), bytes(declared_bytes(hidden)))

    return does


def passes_on(**changes: int) -> Behaviour:
    """Sends each step on with other fields, as if it had run it; what is last answers with that."""

    async def does(liar: Liar, channel: Channel, message: Message, payload: bytes) -> None:
        await opens(liar, channel, message, payload)
        if not isinstance(message, Step):
            return
        client, opened = liar.sessions[message.session]
        if opened.next is None:
            rows = message.wanted
            hidden = message.hidden
            size = len(payload) // hidden.rows * rows
            fewer = hidden_states(hidden.codec, rows, hidden.width)
            message, payload = msgspec.structs.replace(message, tensors=fewer), payload[len(payload) - size :]
        changed = {name: getattr(message, name) + by for name, by in changes.items()}
        way = client if opened.next is None else await liar.onward(message.session)
        await way.send(msgspec.structs.replace(message, **changed), payload)

    return does
