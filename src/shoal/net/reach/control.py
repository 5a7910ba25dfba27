"""What is said on a control connection to a relay: msgpack messages behind their length, over a pipe.

A peer that wants to be reached keeps one open and holds a place there (``Reserve``). A peer that wants to
reach it opens one, too, and makes a ``Call``; the relay hands it on and brings the ``CallAnswer`` back. What
the two then do with each other (:mod:`shoal.net.carriers.punch`) is proven by Noise between them: the relay
can only fail to bring them together.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

import msgspec
import trio
from msgspec import Meta, Struct

from shoal.errors import ChannelClosed, RemoteProtocolError
from shoal.net.network import Pipe
from shoal.net.reach.openings import TOKEN_BYTES
from shoal.types import NatKind, PeerId

MESSAGE_LIMIT = 4096
WAITING_LIMIT = 64
"""Messages for one peer that have not left; a peer that does not read them is hung up on."""
SENT_WITHIN_S = 10.0
SILENT_S = 60.0
"""How long a control connection may be silent. Whoever holds a place renews it much more often."""
RENEW_S = 5.0
"""How often a place is renewed. The relay answers, so a router that has forgotten us is noticed soon."""
UNANSWERED_S = 12.0
"""How long a relay at which we hold a place may say nothing."""

_LENGTH = struct.Struct(">H")

CallNumber = Annotated[int, Meta(ge=0, le=(1 << 62))]
CallPeer = Annotated[str, Meta(min_length=1, max_length=128)]
Token = Annotated[bytes, Meta(min_length=TOKEN_BYTES, max_length=TOKEN_BYTES)]
CallAddresses = Annotated[tuple[Annotated[str, Meta(max_length=256)], ...], Meta(max_length=8)]

CallKind = Literal["meet", "relay"]
"""What the called is to do: dial the caller and be dialled by it, or join it in a circuit of the relay."""


class Welcome(Struct, frozen=True, array_like=True, tag="welcome"):
    """The relay's first word."""

    seen: Annotated[str, Meta(max_length=256)]
    """The multiaddr that the peer comes from."""
    relays: bool
    """Whether it takes reservations and calls; to tell ``seen`` costs nothing and is told anybody."""


class Reserve(Struct, frozen=True, array_like=True, tag="reserve"):
    """Hand me the calls for me; said again, it keeps the place."""


class Reserved(Struct, frozen=True, array_like=True, tag="reserved"):
    """You have a place."""


class RelayRefusal(Struct, frozen=True, array_like=True, tag="refused"):
    """Not that; ``call`` is the number of the call that is refused, 0 for a reservation."""

    call: CallNumber
    why: Annotated[str, Meta(max_length=200)]


class Call(Struct, frozen=True, array_like=True, tag="call"):
    """Bring me together with ``peer``; handed on, ``peer`` is who calls."""

    call: CallNumber
    peer: CallPeer
    kind: CallKind
    token: Token
    """What connections that come of it begin with."""
    addresses: CallAddresses
    """Where the caller is seen, for ``meet``."""
    nat: NatKind


class CallAnswer(Struct, frozen=True, array_like=True, tag="answer"):
    """The called does its part; ``addresses`` is where it is seen."""

    call: CallNumber
    addresses: CallAddresses


ControlMessage = Welcome | Reserve | Reserved | RelayRefusal | Call | CallAnswer

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(ControlMessage).decode


def decode_control(body: bytes) -> ControlMessage:
    """Raises RemoteProtocolError: it is none."""
    try:
        return _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"not a message to a relay: {error}") from error


class ControlLink:
    """Messages over one pipe. ``pump`` must be running for anything to leave."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._put, self._waiting = trio.open_memory_channel[ControlMessage](WAITING_LIMIT)
        self._data = bytearray()

    @property
    def peer(self) -> PeerId:
        return self._pipe.peer

    def send(self, message: ControlMessage) -> None:
        """Send soon, without waiting.

        Raises:
            ChannelClosed: the connection is closed, or its peer does not read.
        """
        try:
            self._put.send_nowait(message)
        except trio.WouldBlock:
            self._put.close()
            raise ChannelClosed(f"{self.peer} does not read") from None
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ChannelClosed(f"the connection to {self.peer} is closed") from None

    async def pump(self) -> None:
        """Write what is sent, until there is no more to come.

        Raises:
            ChannelClosed: the pipe broke, or its peer does not read.
        """
        async for message in self._waiting:
            body = _encode(message)
            with trio.move_on_after(SENT_WITHIN_S) as sending:
                await self._pipe.send_all(_LENGTH.pack(len(body)) + body)
            if sending.cancelled_caught:
                raise ChannelClosed(f"{self.peer} has not read for {SENT_WITHIN_S:.0f} s")
        raise ChannelClosed(f"the connection to {self.peer} is closed")

    async def messages(self) -> AsyncGenerator[ControlMessage]:
        """What the peer says, until it hangs up.

        Raises:
            ChannelClosed: the pipe broke, or nothing came for ``SILENT_S``.
            RemoteProtocolError: it is no message, or too long.
        """
        while True:
            while (message := self._next()) is not None:
                yield message
            with trio.move_on_after(SILENT_S) as listening:
                data = await self._pipe.receive_some()
                if not data:
                    return
                self._data += data
            if listening.cancelled_caught:
                raise ChannelClosed(f"nothing heard of {self.peer} for {SILENT_S:.0f} s")

    def _next(self) -> ControlMessage | None:
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > MESSAGE_LIMIT:
            raise RemoteProtocolError(f"a message of {length} bytes; at most {MESSAGE_LIMIT} are allowed")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        body = bytes(self._data[_LENGTH.size : end])
        del self._data[:end]
        return decode_control(body)

    async def aclose(self) -> None:
        """Close the connection."""
        self._put.close()
        await self._pipe.aclose()
