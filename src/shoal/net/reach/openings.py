"""What a connection to the direct carrier's port begins with.

A pipe begins with Noise's first message, whose length is 32 or 48. Two other beginnings cannot be taken for
it: ``CONTROL`` before the handshake of a control connection to a relay, and ``TOKEN`` with 32 bytes that two
peers, or a peer and a relay, have agreed on. Each is at least as long as Noise's first message, so that who
says nothing can be told apart before anything is read (:mod:`shoal.net.handshakes`).
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Generator
from contextlib import contextmanager

import trio

from shoal.errors import ChannelClosed

CONTROL = b"SC"
TOKEN = b"ST"
TOKEN_BYTES = 32
TOKEN_WITHIN_S = 3.0


def new_token() -> bytes:
    """A token that nobody can guess."""
    return secrets.token_bytes(TOKEN_BYTES)


async def peek_opening(stream: trio.SocketStream) -> bytes:
    """The first two bytes of a connection, which have come and stay unread."""
    return await stream.socket.recv(2, socket.MSG_PEEK)


async def send_token(stream: trio.abc.SendStream, token: bytes) -> None:
    """Raises ChannelClosed: the connection broke."""
    try:
        await stream.send_all(TOKEN + token)
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        raise ChannelClosed("the connection broke") from error


async def read_token(stream: trio.abc.ReceiveStream) -> bytes:
    """The token at the beginning of a connection, and not a byte more.

    Raises:
        ChannelClosed: it begins otherwise, ended, or sent too little in time.
    """
    data = b""
    with trio.move_on_after(TOKEN_WITHIN_S):
        while len(data) < len(TOKEN) + TOKEN_BYTES:
            try:
                part = await stream.receive_some(len(TOKEN) + TOKEN_BYTES - len(data))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise ChannelClosed("the connection broke") from error
            if not part:
                break
            data += bytes(part)
    if len(data) != len(TOKEN) + TOKEN_BYTES or not data.startswith(TOKEN):
        raise ChannelClosed("the connection does not begin with a token")
    return data[len(TOKEN) :]


class ExpectedStreams:
    """Connections that others make to us and that begin with a token somebody here waits for."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, trio.MemorySendChannel[trio.SocketStream]] = {}

    @contextmanager
    def expect(self, token: bytes) -> Generator[trio.MemoryReceiveChannel[trio.SocketStream]]:
        """Streams that begin with this token while the block runs; what is not taken in time is closed.

        Raises:
            ChannelClosed: it is waited for already: who chose it has used it twice.
        """
        if token in self._waiting:
            raise ChannelClosed("a connection with this token is awaited already")
        put, taken = trio.open_memory_channel[trio.SocketStream](4)
        self._waiting[token] = put
        try:
            yield taken
        finally:
            del self._waiting[token]
            put.close()
            for stream in _left(taken):
                stream.socket.close()

    def give(self, token: bytes, stream: trio.SocketStream) -> bool:
        """Hand a stream to who waits for it; whether anybody does. Then it is no longer the caller's."""
        put = self._waiting.get(token)
        if put is None:
            return False
        try:
            put.send_nowait(stream)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        return True


def _left(taken: trio.MemoryReceiveChannel[trio.SocketStream]) -> Generator[trio.SocketStream]:
    while True:
        try:
            yield taken.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            return
