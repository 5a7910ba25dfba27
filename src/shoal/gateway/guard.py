"""At the door: who may come in at all. Every request passes here before any route sees it.

Nothing is open but the page's own files and ``/health``. Without any API key only this machine is served:
callers on loopback, that did not come through a proxy. A browser must have been sent here by the page itself,
or by an origin that the settings allow (DNS rebinding: CVE-2024-28224).
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shoal.errors import ShoalError
from shoal.gateway.errors import Forbidden, HttpError, Unauthorized, error_response
from shoal.gateway.keys import LOCAL, Caller, KeyRing

log = logging.getLogger(__name__)

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers by which a proxy on this machine says that the caller is elsewhere."""
CORS_METHODS = "GET, POST"
CORS_HEADERS = "authorization, content-type, x-api-key"


@dataclass(frozen=True, slots=True)
class Doors:
    """What is open, and to whom."""

    is_open: Callable[[str], bool]
    """Whether a path needs no key."""
    origins: Collection[str] = ()
    """Origins beside our own that a browser may call from, for example ``https://chat.example.org``."""

    def knows_host(self, host: str) -> bool:
        """Whether a browser that resolved ``host`` may have meant us: an address, a name of ours."""
        name = (urlsplit(f"//{host}").hostname or "") if host else ""
        if (
            name == "localhost"
            or name in _own_names()
            or any(urlsplit(o).hostname == name for o in self.origins)
        ):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page of ``origin`` may call ``host``: its own, or one that is configured."""
        return origin in self.origins or (origin != "null" and urlsplit(origin).netloc == host)


class Guard:
    """The outermost layer: an id for every answer, checks before it, and one shape for every failure."""

    def __init__(self, app: ASGIApp, doors: Doors, keys: KeyRing) -> None:
        self._app = app
        self._doors = doors
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})  # nothing here speaks it
            return
        request = Request(scope)
        request_id = f"req_{secrets.token_hex(12)}"
        started = False

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._label(MutableHeaders(scope=message), request.headers, request_id)
            await send(message)

        try:
            answer = self._admit(request)
            await (answer or self._app)(scope, receive, labelled)
        except ShoalError as error:
            if started:
                raise
            await error_response(error)(scope, receive, labelled)
        except Exception:
            # The last stop: a defect that one request has met must not end the server, nor tell its insides.
            log.exception("%s: a defect", request_id)
            if started:
                raise
            await error_response(Defect(request_id))(scope, receive, labelled)

    def _admit(self, request: Request) -> Response | None:
        """Let the request pass, or answer it here (a CORS preflight).

        Raises:
            Forbidden: from a host name or an origin that is not ours.
            Unauthorized: no key where one is needed, or a wrong one.
        """
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self._doors.knows_host(host):
            raise Forbidden(
                f"this gateway is not known as {host[:100]!r}",
                check="the address in the browser; other names are allowed by the setting gateway_origins",
            )
        if origin is not None and not self._doors.allows_origin(origin, host):
            raise Forbidden(
                f"pages of {origin[:100]!r} may not call this gateway", check="the setting gateway_origins"
            )
        if origin in self._doors.origins and request.method == "OPTIONS":
            allowed = {
                "access-control-allow-methods": CORS_METHODS,
                "access-control-allow-headers": CORS_HEADERS,
                "access-control-max-age": "600",
            }
            return Response(status_code=204, headers=allowed)
        if not self._doors.is_open(request.scope["path"]):
            request.scope["caller"] = self._caller(request)
        return None

    def _caller(self, request: Request) -> Caller:
        presented = _presented(request.headers)
        if presented is not None and (caller := self._keys.find(presented)) is not None:
            return caller
        if self._keys.any:
            raise Unauthorized(
                "no API key, or one that is not known here",
                check="the header Authorization: Bearer KEY; a key is made by: shoal key create NAME",
            )
        if not _on_this_machine(request):
            raise Unauthorized(
                "without an API key only this machine is served",
                check="shoal key create NAME, on the gateway's machine",
            )
        return LOCAL

    def _label(self, headers: MutableHeaders, asked: Headers, request_id: str) -> None:
        headers["x-request-id"] = request_id
        headers.setdefault("cache-control", "no-store")
        headers["x-content-type-options"] = "nosniff"
        origin = asked.get("origin")
        if origin is not None and origin in self._doors.origins:
            headers["access-control-allow-origin"] = origin
            headers.add_vary_header("origin")


class Defect(HttpError):
    """Ours, and nobody else's business but the log's."""

    code = "internal_error"
    status = 500

    def __init__(self, request_id: str) -> None:
        super().__init__(f"a defect of Shoal; the gateway's log has it as {request_id}")


def caller_of(request: Request) -> Caller:
    """On whose behalf the request is; the guard has seen to it that there is somebody."""
    return request.scope["caller"]


def _presented(headers: Headers) -> str | None:
    """The API key that came with a request."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return headers.get("x-api-key")


def _on_this_machine(request: Request) -> bool:
    if request.client is None or any(name in request.headers for name in FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _own_names() -> set[str]:
    name = socket.gethostname().lower()
    return {name, f"{name}.local"}
