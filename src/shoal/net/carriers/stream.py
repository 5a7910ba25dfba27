"""The libp2p-stream carrier, and questions asked over a stream of their own.

Slower than the direct carrier (a muxer, more layers), but it works wherever a libp2p connection does,
through a relay too.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Awaitable
from contextlib import suppress
from typing import Any, TypeVar

import trio
from libp2p.abc import INetStream
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF

from shoal.errors import ChannelClosed, LocalProtocolError, RemoteProtocolError, ShoalError
from shoal.net.addresses import is_private
from shoal.net.network import RequestHandler
from shoal.types import CarrierName, PeerId, Way

PIPE_PROTOCOL = "/shoal/pipe/1.0.0"
MESSAGE_LIMIT = 1 << 20
"""Bytes of a question or an answer."""
ANSWER_WITHIN_S = 10.0
READ = 1 << 16
WRITE = (1 << 16) - 12
"""Bytes of one frame of the library's yamux."""
WINDOW_POLL_S = 0.002
PING = 32

log = logging.getLogger(__name__)

_LENGTH = struct.Struct(">I")
_Result = TypeVar("_Result")


class StreamPipe:
    """A pipe over one long-lived libp2p stream."""

    def __init__(self, stream: INetStream, carrier: CarrierName) -> None:
        self.peer = PeerId(str(stream.muxed_conn.peer_id))
        self.carrier: CarrierName = carrier
        muxed: Any = stream.muxed_conn
        remote = muxed.get_remote_address() if carrier == "libp2p-stream" else None
        self.host = remote[0] if remote else ""
        self.noise_key: bytes = muxed.secured_conn.get_remote_public_key().to_bytes()
        self.way: Way = "relayed" if carrier == "relayed" else "lan" if is_private(self.host) else "public"
        self.closed = trio.Event()
        self._stream = stream
        self._sending = trio.Lock()
        self._reading = trio.CancelScope()
        self._broken = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send in pieces. A cancelled send breaks the pipe: part of it may have gone."""
        view = memoryview(data)
        async with self._sending:
            if self._broken:
                raise ChannelClosed(f"the stream to {self.peer} is broken")
            # Until all of it is sent: who is cancelled on the way leaves the pipe broken.
            self._broken = True
            while view:
                size = min(await self._window(), WRITE)
                await _translated(self._stream.write(bytes(view[:size])))
                view = view[size:]
            self._broken = False

    def send_now(self, data: bytes) -> bool:
        """Nothing: libp2p's streams belong to the event loop."""
        return False

    @property
    def unsent(self) -> bool:
        return False

    async def _window(self) -> int:
        """Wait until the peer allows some bytes. The library would give up after five seconds."""
        muxed: Any = getattr(self._stream, "muxed_stream", None)
        while muxed.send_window <= 0:
            if muxed.closed or muxed.send_closed or self.closed.is_set():
                raise ChannelClosed(f"the stream to {self.peer} is closed")
            await trio.sleep(WINDOW_POLL_S)
        return muxed.send_window

    async def receive_some(self) -> bytes:
        """The next bytes; ``b""`` when the peer has closed."""
        if self.closed.is_set():
            raise ChannelClosed(f"the stream to {self.peer} is closed")
        # The library would not wake a reader when its own side ends the stream.
        with trio.CancelScope() as self._reading:
            return await _read(self._stream, READ)
        raise ChannelClosed(f"the stream to {self.peer} is closed")

    async def aclose(self) -> None:
        """End the stream, both ways; the connection stays."""
        whole = not self._broken
        self._broken = True
        self.closed.set()
        self._reading.cancel()
        if whole:
            await close(self._stream)  # what was sent before still arrives
        await reset(self._stream)


async def ask(stream: INetStream, question: bytes) -> bytes:
    """Send a question and read the answer.

    Raises:
        LocalProtocolError: the question is longer than ``MESSAGE_LIMIT``.
        ChannelClosed: the stream broke.
        RemoteProtocolError: the answer is too long or cut short.
    """
    if len(question) > MESSAGE_LIMIT:
        raise LocalProtocolError(f"a question of {len(question)} bytes; at most {MESSAGE_LIMIT} are allowed")
    await _translated(stream.write(_LENGTH.pack(len(question)) + question))
    return await _read_message(stream)


async def answer_on(stream: INetStream, handler: RequestHandler) -> None:
    """Read one question and answer it. A peer that breaks the rules, or is slow, is hung up on."""
    peer = PeerId(str(stream.muxed_conn.peer_id))
    try:
        with trio.fail_after(ANSWER_WITHIN_S):
            answer = await handler(peer, await _read_message(stream))
            if len(answer) > MESSAGE_LIMIT:
                raise LocalProtocolError(f"an answer of {len(answer)} bytes")
            await _translated(stream.write(_LENGTH.pack(len(answer)) + answer))
    except (ShoalError, trio.TooSlowError) as error:
        log.debug("%s got no answer: %s", peer, error)
        await reset(stream)
    else:
        await close(stream)


async def ping_on(stream: INetStream) -> float:
    """One round trip of libp2p's ping (https://github.com/libp2p/specs/blob/master/ping/ping.md), in seconds.

    Raises:
        ChannelClosed: the stream broke.
        RemoteProtocolError: another answer than what was sent.
    """
    sent, start = os.urandom(PING), trio.current_time()
    await _translated(stream.write(sent))
    if await _read_exactly(stream, PING) != sent:
        raise RemoteProtocolError("an answer to a ping that is not what was sent")
    return trio.current_time() - start


async def close(stream: INetStream) -> None:
    """Close our side of a stream that may be gone already."""
    with trio.move_on_after(1.0, shield=True), suppress(ChannelClosed):
        await _translated(stream.close())


async def reset(stream: INetStream) -> None:
    """End both sides of a stream that may be gone already; nothing of it is kept."""
    with trio.move_on_after(1.0, shield=True), suppress(ChannelClosed):
        await _translated(stream.reset())


async def _read_message(stream: INetStream) -> bytes:
    (length,) = _LENGTH.unpack(await _read_exactly(stream, _LENGTH.size))
    if length > MESSAGE_LIMIT:
        raise RemoteProtocolError(f"a message of {length} bytes; at most {MESSAGE_LIMIT} are allowed")
    return await _read_exactly(stream, length)


async def _read_exactly(stream: INetStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = await _read(stream, min(READ, size - len(data)))
        if not part and not data and size == _LENGTH.size:
            raise ChannelClosed("the peer hung up without a message")
        if not part:
            raise RemoteProtocolError(f"a message that ends after {len(data)} of {size} bytes")
        data += part
    return bytes(data)


async def _read(stream: INetStream, size: int) -> bytes:
    try:
        return await _translated(stream.read(size))
    except ChannelClosed as error:
        if isinstance(error.__cause__, StreamEOF):
            return b""
        raise


async def _translated(call: Awaitable[_Result]) -> _Result:
    """Run a call of the library; what it raises for a stream that is gone becomes ours."""
    try:
        return await call
    except (BaseLibp2pError, trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
        raise ChannelClosed(f"the stream broke ({type(error).__name__})") from error
