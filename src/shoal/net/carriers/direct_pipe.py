"""A direct pipe: Noise's records on a plain TCP stream, with no muxer between.

After libp2p's handshake (:mod:`shoal.net.carriers.direct`) records are a 2-byte length and at most 65,519
sealed bytes, as in libp2p; the loop here seals and opens them without the layers that cost a libp2p stream
its speed.
"""

from __future__ import annotations

import os
import struct
import threading
from typing import Any

import trio
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shoal.errors import ChannelClosed, RemoteProtocolError
from shoal.net.handshakes import host_of, multiaddr_of_peer
from shoal.net.reach.ports import wait_arrived
from shoal.types import CarrierName, PeerId, Way

MAX_PLAINTEXT = 65519
BATCH = 1 << 18
"""Sealed bytes that are given to the socket at once: more, and the peer waits while we seal."""
READ = 1 << 18

_LENGTH = struct.Struct(">H")


class _Cipher:
    """One direction of a finished Noise handshake: ChaCha20-Poly1305 and its count of records.

    https://noiseprotocol.org/noise.html, sections 5.1 and 12.3. The library's own wrappers take three times
    as long for a short record.
    """

    def __init__(self, state: Any) -> None:
        self._aead: ChaCha20Poly1305 = state.cipher.cipher
        self._count: int = state.n

    def encrypt(self, plain: bytes | memoryview) -> bytes:
        return self._aead.encrypt(self._nonce(), plain, b"")

    def decrypt(self, sealed: memoryview) -> bytes:
        """Raises ``InvalidTag`` for what the peer has not sealed, or not as its next record."""
        return self._aead.decrypt(self._nonce(), sealed, b"")

    def _nonce(self) -> bytes:
        # Counted on both sides and never sent: a record that is missing, repeated or moved does not open.
        nonce = bytes(4) + self._count.to_bytes(8, "little")
        self._count += 1
        return nonce


class DirectPipe:
    """A pipe of Noise records on a TCP stream."""

    def __init__(
        self, stream: trio.SocketStream, noise: Any, peer: PeerId, way: Way, key: bytes = b""
    ) -> None:
        self.peer = peer
        self.noise_key = key
        self.way: Way = way
        self.carrier: CarrierName = way if way in ("relayed", "iroh") else "direct"
        # The other end of a circuit is the relay, and over iroh it is our own process: neither says where
        # the peer is.
        self.host = host_of(stream.socket) if self.carrier == "direct" else ""
        self.closed = trio.Event()
        self.traceless = False
        """Whether the end of its connection discards what the peer has not got yet, and a close waits for
        that (:func:`~shoal.net.reach.ports.leave_no_trace`)."""
        self._stream = stream
        self._sealing = _Cipher(noise.noise_protocol.cipher_state_encrypt)
        self._opening = _Cipher(noise.noise_protocol.cipher_state_decrypt)
        self._rest = b""
        self._unsent = b""
        self._sending = trio.Lock()
        self._writing = threading.Lock()
        self._broken = False

    @property
    def remote(self) -> str:
        """The multiaddr of the other end; empty if it is gone."""
        return multiaddr_of_peer(self._stream.socket)

    @property
    def local_port(self) -> int:
        """The port of our end; 0 if it is gone."""
        try:
            return int(self._stream.socket.getsockname()[1])
        except OSError:
            return 0

    def send_now(self, data: bytes) -> bool:
        """Seal one record and give it to the socket, if nothing is before it."""
        # Read without a lock: the channel lets one writer at a time come here (see Pipe.send_now).
        if self._unsent or self._sending.locked() or len(data) > MAX_PLAINTEXT:
            return False
        with self._writing:
            if self._broken:
                raise ChannelClosed(f"the pipe to {self.peer} is broken")
            sealed = self._seal(data)
            try:
                # Not through trio, whose sockets belong to the loop: this may be any thread.
                sent = os.write(self._stream.socket.fileno(), sealed)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._broken = True
                raise ChannelClosed(f"the connection to {self.peer} broke") from error
            self._unsent = sealed[sent:]
        return True

    @property
    def unsent(self) -> bool:
        """Whether part of a record still has to go."""
        return bool(self._unsent)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Seal and send. A cancelled send breaks the pipe: the peer could no longer tell records apart."""
        view = memoryview(data)
        async with self._sending:
            if self._broken:
                raise ChannelClosed(f"the pipe to {self.peer} is broken")
            # Until all of it is sent: who is cancelled on the way leaves the pipe broken.
            self._broken = True
            out, self._unsent = bytearray(self._unsent), b""
            for start in range(0, len(view), MAX_PLAINTEXT):
                out += self._seal(view[start : start + MAX_PLAINTEXT])
                if len(out) >= BATCH:
                    await self._send(out)
                    out = bytearray()
            if out:
                await self._send(out)
            self._broken = False

    async def receive_some(self) -> bytes:
        """The plaintext of every whole record that has come, at least one byte."""
        while True:
            try:
                # Not through trio's stream, which would first ask the socket in vain.
                await trio.lowlevel.wait_readable(self._stream.socket)
                data = os.read(self._stream.socket.fileno(), READ)
            except BlockingIOError:
                continue
            except (OSError, ValueError, trio.ClosedResourceError) as error:
                raise ChannelClosed(f"the connection to {self.peer} broke") from error
            if not data and self._rest:
                raise ChannelClosed(f"the connection to {self.peer} ended within a record")
            if not data:
                return b""
            opened = self._open_records(data)
            if opened:
                return opened

    async def aclose(self) -> None:
        """Close the connection, a ``traceless`` one once all has arrived, or half a second has passed."""
        with self._writing:  # or another thread would write to a descriptor that is somebody else's by now
            self._broken = True
        if self.traceless:
            await wait_arrived(self._stream.socket)
        self.closed.set()
        await trio.aclose_forcefully(self._stream)

    def _seal(self, plain: bytes | memoryview) -> bytes:
        sealed = self._sealing.encrypt(plain)
        return _LENGTH.pack(len(sealed)) + sealed

    async def _send(self, data: bytearray) -> None:
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelClosed(f"the connection to {self.peer} broke") from error

    def _open_records(self, data: bytes) -> bytes:
        """The plaintext of the whole records that have come; what is left waits for its rest."""
        sealed, start, opened = self._rest + data, 0, list[bytes]()
        view = memoryview(sealed)
        try:
            while len(sealed) - start >= 2:
                (length,) = _LENGTH.unpack_from(sealed, start)
                end = start + 2 + length
                if len(sealed) < end:
                    break
                opened.append(self._opening.decrypt(view[start + 2 : end]))
                start = end
        except InvalidTag as error:
            self._broken = True
            raise RemoteProtocolError(f"{self.peer} sent a record that it has not sealed") from error
        self._rest = sealed[start:]
        return opened[0] if len(opened) == 1 else b"".join(opened)
