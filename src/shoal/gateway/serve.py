"""HTTP on a socket: Hypercorn's protocols under trio, with a bound on connections and on every send."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from starlette.types import ASGIApp

from shoal.gateway.http1 import StrictConnection
from shoal.net.libp2p.tcp import listen_on

CONNECTIONS = 1024
"""Open at once; one more is closed as it comes."""
HEADERS_WITHIN_S = 10.0
"""For a request's headers to come, or the next request on a connection that is kept."""
SEND_WITHIN_S = 30.0
"""For a client to take what was sent; one that does not read loses its connection."""

log = logging.getLogger(__name__)


async def serve(
    app: ASGIApp, host: str, port: int, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``app`` until cancelled; started with its URL once it listens.

    Args:
        port: 0 takes a free one.

    Raises:
        PortInUse: somebody else listens there.
    """
    listener = await listen_on(host, port)
    config = Config()
    config.keep_alive_timeout = HEADERS_WITHIN_S
    config.include_server_header = False
    config.errorlog = None
    wrapped, context = ASGIWrapper(cast(Any, app)), WorkerContext(None)
    open_now = 0

    async def one(stream: trio.SocketStream) -> None:
        nonlocal open_now
        if open_now >= CONNECTIONS:
            await stream.aclose()
            return
        open_now += 1
        try:
            await StrictServer(wrapped, config, context, {}, cast(Any, BoundedStream(stream))).run()
        except Exception:
            # A defect that one connection has met must not end all the others.
            log.exception("a connection ended in a defect")
        finally:
            open_now -= 1

    bound = listener.socket.getsockname()
    name = f"[{bound[0]}]" if ":" in bound[0] else bound[0]
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(trio.serve_listeners, one, [listener]))
        task_status.started(f"http://{name}:{bound[1]}")


class StrictServer(TCPServer):
    """Hypercorn's server of one connection, which reads HTTP/1 as :mod:`shoal.gateway.http1` does."""

    async def _read_data(self) -> None:
        protocol = self.protocol.protocol
        if isinstance(protocol, H11Protocol):
            protocol.connection = StrictConnection(
                h11.SERVER, max_incomplete_event_size=self.config.h11_max_incomplete_size
            )
        await super()._read_data()


class BoundedStream(trio.abc.HalfCloseableStream):
    """A client that does not take what it asked for is let go.

    Hypercorn shields its sends from being cancelled, so the deadline must be in the stream.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self.socket = stream.socket
        self._stream = stream

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        with trio.move_on_after(SEND_WITHIN_S) as waiting:
            await self._stream.send_all(data)
        if waiting.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client does not read")

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()
