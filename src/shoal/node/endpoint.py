"""A node's figures over HTTP: some pages, by GET, for this machine alone unless the user says otherwise.

h11 speaks the protocol (https://h11.readthedocs.io); this file moves its bytes within deadlines and bounds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address

import h11
import trio

from shoal.net.libp2p.tcp import accept_forever, listen_on

ANSWERED_WITHIN_S = 5.0
"""For a whole request, its answer among it."""
REQUEST_LIMIT = 8 << 10
"""Bytes of a request."""
AT_ONCE = 16
"""Connections; one more is closed unheard."""
LOOPBACK_NAMES = frozenset(("localhost", "127.0.0.1", "[::1]"))


@dataclass(frozen=True, slots=True)
class EndpointPage:
    """What is answered at one path."""

    render: Callable[[], bytes]
    media_type: str
    local: bool = False
    """Only for programs on this machine, wherever the endpoint listens."""


EndpointPages = Mapping[str, EndpointPage]


async def show(
    pages: EndpointPages,
    host: str,
    port: int,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer until cancelled. Started with the URL.

    Raises:
        PortInUse: another program has the port.
    """
    listener = await listen_on(host, port)
    connections = trio.CapacityLimiter(AT_ONCE)

    async def take(stream: trio.SocketStream) -> None:
        try:
            # Never waits: whoever finds all places taken is hung up on, and costs nothing more.
            connections.acquire_nowait()
        except trio.WouldBlock:
            await trio.aclose_forcefully(stream)
            return
        try:
            with trio.move_on_after(ANSWERED_WITHIN_S):
                await _answer(stream, pages)
        finally:
            connections.release()
            await trio.aclose_forcefully(stream)

    bound = listener.socket.getsockname()[1]
    task_status.started(f"http://{f'[{host}]' if ':' in host else host}:{bound}")
    await accept_forever(listener, take)


async def _answer(stream: trio.SocketStream, pages: EndpointPages) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_LIMIT)
    try:
        request = await _request(connection, stream)
        status, page = _choose(request, pages, stream)
    except h11.RemoteProtocolError as error:
        status, page = HTTPStatus(error.error_status_hint), None
    body = page.render() if page else f"{status.phrase}\n".encode()
    headers = [
        ("content-type", page.media_type if page else "text/plain; charset=utf-8"),
        ("content-length", str(len(body))),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("connection", "close"),
    ]
    events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
    await stream.send_all(b"".join(connection.send(event) or b"" for event in events))


async def _request(connection: h11.Connection, stream: trio.SocketStream) -> h11.Request:
    """The head of the request; a GET has nothing behind it that matters.

    Raises:
        h11.RemoteProtocolError: it is none, or too long.
    """
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            raise h11.RemoteProtocolError("no request")
        connection.receive_data(await stream.receive_some(2 * REQUEST_LIMIT))


def _choose(
    request: h11.Request, pages: EndpointPages, stream: trio.SocketStream
) -> tuple[HTTPStatus, EndpointPage | None]:
    page = pages.get(request.target.decode("ascii", "replace").partition("?")[0])
    if request.method != b"GET":
        return HTTPStatus.METHOD_NOT_ALLOWED, None
    if page is None:
        return HTTPStatus.NOT_FOUND, None
    if not _may_see(page, request, stream):
        return HTTPStatus.FORBIDDEN, None
    return HTTPStatus.OK, page


def _may_see(page: EndpointPage, request: h11.Request, stream: trio.SocketStream) -> bool:
    """Whether this caller may see the page.

    A browser that asks our loopback address for a page of somebody else's (DNS rebinding) names that host.
    """
    ours, theirs = stream.socket.getsockname()[0], stream.socket.getpeername()[0]
    if not ip_address(ours).is_loopback:
        return not page.local
    host = dict(request.headers).get(b"host", b"").decode("ascii", "replace")
    name = host if host.endswith("]") else host.rpartition(":")[0] or host
    return name in LOOPBACK_NAMES and ip_address(theirs).is_loopback
