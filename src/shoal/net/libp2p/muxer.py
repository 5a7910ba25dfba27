"""Yamux with bounds: py-libp2p's muxer for peers that flood, stall or never read.

py-libp2p 0.8 warns when a peer sends more than its window and keeps the bytes all the same; takes any
number of streams; waits for ever on a peer that does not read; never notices one that is gone without a
word; and a write that is cancelled half-way leaves a torn record, after which the connection only looks
alive. Spec: https://github.com/hashicorp/yamux/blob/master/spec.md
"""

from __future__ import annotations

import logging
import struct
from contextlib import suppress

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import (
    FLAG_SYN,
    GO_AWAY_NORMAL,
    PROTOCOL_ID,
    TYPE_PING,
    YAMUX_HEADER_FORMAT,
    Yamux,
)

STREAMS_LIMIT = 256
"""Streams of one connection, both ways; one more is reset at once."""
BUFFERED_LIMIT = 32 << 20
"""Bytes of one connection that have come and that nobody has read."""
WRITTEN_WITHIN_S = 20.0
CLOSED_WITHIN_S = 1.0
PING_EVERY_S = 15.0
PONG_WITHIN_S = 10.0

log = logging.getLogger(__name__)


class BoundedYamux(Yamux):
    """One connection's muxer."""

    _torn = False

    async def start(self) -> None:
        """Run until the connection ends. What the peer makes the library raise ends only this connection."""
        try:
            await super().start()
        except Exception as error:  # noqa: BLE001  the library's own service would end with it
            log.debug("a muxer failed: %r", error)
            await self.close()
        finally:
            self.event_started.set()

    async def accept_stream(self) -> IMuxedStream:
        """The next stream that the peer opens, within the limit."""
        while True:
            stream = await super().accept_stream()
            if len(self.streams) <= STREAMS_LIMIT:
                return stream
            await stream.reset()

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        """Say goodbye and close, soon even if the peer does not read."""
        with trio.move_on_after(CLOSED_WITHIN_S, shield=True):
            # Whoever is writing has a moment to finish its record; then the connection is torn.
            async with self._write_lock:
                pass
        if self._write_lock.locked():
            await self._tear()
        await super().close(error_code)

    async def _write_frame(self, data: bytes) -> None:
        async with self._write_lock:
            if self._torn:
                raise ConnectionClosedError("the connection is closed: a write was not finished")
            # Never half a record: a cancelled caller waits for its frame, but not for long.
            within = CLOSED_WITHIN_S if self.event_shutting_down.is_set() else WRITTEN_WITHIN_S
            with trio.move_on_after(within, shield=True) as writing:
                try:
                    await self.secured_conn.write(data)
                except (BaseLibp2pError, OSError):
                    await self._tear()  # or the library goes on answering what the peer sent before it left
                    raise
        if writing.cancelled_caught:
            await self._tear()
            raise ConnectionClosedError(f"the peer has not read for {within:.0f} s")

    async def _tear(self) -> None:
        self._torn = True
        with suppress(BaseLibp2pError, OSError, trio.ClosedResourceError, trio.BrokenResourceError):
            await self.secured_conn.close()

    async def _read_data_body(self, length: int) -> bytes:
        waiting = sum(map(len, self.stream_buffers.values()))
        if waiting + length > BUFFERED_LIMIT:
            # The one error that the library answers by closing the connection; any other it logs, and then
            # reads the body as if it were a header.
            raise trio.TooSlowError(f"{waiting + length} bytes that nobody has read")
        return await super()._read_data_body(length)

    async def _measure_rtt_loop(self) -> None:
        """Ping the peer, and close when it does not answer; the library's loop goes on regardless."""
        await trio.sleep(0.5)
        while not self.event_shutting_down.is_set():
            self._ping_id = (self._ping_id + 1) & 0xFFFFFFFF
            self._ping_event = trio.Event()
            frame = struct.pack(YAMUX_HEADER_FORMAT, 0, TYPE_PING, FLAG_SYN, 0, self._ping_id)
            try:
                await self._write_frame(frame)
            except (BaseLibp2pError, OSError):
                return
            self._ping_sent_time = trio.current_time()
            with trio.move_on_after(PONG_WITHIN_S) as waiting:
                await self._ping_event.wait()
            if waiting.cancelled_caught:
                log.debug("%s does not answer: its connection is closed", self.peer_id)
                await self._tear()  # wakes the reader, which cleans up
                return
            with trio.move_on_after(PING_EVERY_S):
                await self.event_shutting_down.wait()


class BoundedMuxers(MuxerMultistream):
    """Negotiates yamux and nothing else; the library would build its own class whatever it was given."""

    def __init__(self) -> None:
        super().__init__({TProtocol(PROTOCOL_ID): BoundedYamux})

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """The muxer of a secured connection."""
        protocol, _ = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        muxed = BoundedYamux(conn, peer_id, is_initiator=conn.is_initiator)
        return self._annotate_connection(muxed, conn, protocol)
