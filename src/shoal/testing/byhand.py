"""Somebody who speaks the protocol between peers by hand, and need not speak it well."""

from __future__ import annotations

import math
import struct
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio

from shoal.net.channel import Channel
from shoal.net.network import Network
from shoal.types import Codec, Digest, PeerAddress, PeerId
from shoal.wire.framing import FRAGMENT, Payload
from shoal.wire.messages import Message, Open, Step
from shoal.wire.payload import hidden_states

MINE, THEIRS = b"m" * 16, b"t" * 16
"""Ids of sessions."""

NUMERICS = "n1/fp32/auto/modules"
"""By which the nodes of tests compute, where nothing else is said."""

Heard = tuple[Message, bytes]


class ByHand:
    """A channel to one node, whose messages are written and read by a test."""

    def __init__(self, peer: PeerId, channel: Channel, inbox: trio.MemoryReceiveChannel[Heard]) -> None:
        self.peer = peer
        """Who it is."""
        self.channel = channel
        self._inbox = inbox

    async def send(self, message: Message, payload: Payload = b"") -> None:
        """Say something, and do not wait for an answer."""
        await self.channel.send(message, payload)

    async def receive(self, within_s: float = 5.0) -> Heard:
        """The next message, with its payload."""
        with trio.fail_after(within_s):
            return await self._inbox.receive()

    async def ask(self, message: Message, payload: Payload = b"") -> Heard:
        """Say something, and wait for the next message."""
        await self.send(message, payload)
        return await self.receive()


@asynccontextmanager
async def by_hand(network: Network, address: PeerAddress) -> AsyncGenerator[ByHand]:
    """A channel from ``network`` to the node at ``address``."""
    pipe = await network.open_pipe(address, deadline_s=3)
    channel = Channel(pipe)
    put, inbox = trio.open_memory_channel[Heard](math.inf)

    async def take(_: Channel, message: Message, payload: bytes) -> None:
        await put.send((message, payload))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, take)
        await channel.wait_ready(3)
        yield ByHand(network.peer, channel, inbox)
        channel.close()


def an_open(digest: Digest, blocks: int, /, session: bytes = MINE, **changes: Any) -> Open:
    """A request for a session of 32 tokens over so many blocks, with ``changes``."""
    return msgspec.structs.replace(
        Open(session, digest, "fp32", 0, blocks, 32, 0, None, None, NUMERICS), **changes
    )


def a_step(
    elements: int, /, session: bytes = MINE, *, rows: int = 2, codec: Codec = "float32", **changes: Any
) -> Step:
    """A step of two tokens of so many elements that wants the last one's row back, with ``changes``."""
    step = Step(session, 1, 0, 2, 1, hidden_states(codec, rows, elements))
    return msgspec.structs.replace(step, **changes)


def rows(width: int, count: int = 2, value: float = 0.25) -> bytes:
    """``count`` rows of hidden states in float32, each element ``value``."""
    return struct.pack("<f", value) * (width * count)


def fragment(number: int, body: bytes, *, more: bool = False, length: int | None = None) -> bytes:
    """A fragment as :mod:`shoal.wire.framing` frames it, honest or not."""
    return struct.pack(">IIB", number, len(body) if length is None else length, more) + body


def framed(header: bytes, payload: bytes = b"", declared: int | None = None) -> bytes:
    """A whole message with this header, whatever it is, and the size of a payload that need not be true."""
    size = len(payload) if declared is None else declared
    return fragment(1, struct.pack(">II", len(header), size) + header + payload)


def begun(number: int, size: int, declared: int) -> bytes:
    """The first ``size`` bytes of a message that declares a payload of ``declared``, in fragments."""
    body = (struct.pack(">II", 100, declared) + bytes(size))[:size]
    parts = (body[i : i + FRAGMENT] for i in range(0, len(body), FRAGMENT))
    return b"".join(fragment(number, part, more=True) for part in parts)
