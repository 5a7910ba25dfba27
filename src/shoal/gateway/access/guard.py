"""At the door: who may come in at all. Every request passes here before any route sees it.

Nothing is open but the page's own files and ``/health``. Without any API key only this machine is served:
callers on loopback, that did not come through a proxy. A browser must have been sent here by the page itself,
or by an origin that the settings allow, and must know us by a name of ours (DNS rebinding: CVE-2024-28224).
A program with a valid key may call us by any name: it is no browser, and what a page rebinds has no key.
"""

from __future__ import annotations

import ipaddress
import logging
import re
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
from shoal.gateway.access.keys import LOCAL, PAYING, Caller, KeyRing
from shoal.gateway.access.protection import protected
from shoal.gateway.error_forms import error_response, speaks_anthropic
from shoal.gateway.errors import BadRequest, Forbidden, HttpError, NotFound, Unauthorized
from shoal.gateway.unread import Incoming

log = logging.getLogger(__name__)

FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")
"""Headers by which a proxy on this machine says that the caller is elsewhere."""
BROWSERS = ("origin", "sec-fetch-site", "sec-fetch-dest", "sec-fetch-user")
"""Headers that browsers send and no page can leave out. ``Sec-Fetch-Mode`` is not among them: fetch of Node
sends it too."""
CORS_METHODS = "GET, POST, DELETE"
CORS_HEADERS = "authorization, content-type, x-api-key"
"""What a page may send where its preflight does not say what it is going to."""
CORS_EXPOSED = "x-request-id, retry-after, x-shoal-relaxed, payment-required, payment-response"
"""What a page may read of an answer, beside what every page may."""
PREFLIGHT_S = "600"
MAX_PORT = 65535
MAX_PREFLIGHT = 2048
"""Characters of the headers that a preflight asks for."""
_AUTHORITY = r"(?:[\w.~-]{1,255}|\[[\d:A-Fa-f.]{2,45}\])(?::(?P<port>\d{1,5}))?"
_HOST = re.compile(_AUTHORITY, re.ASCII)
_ORIGIN = re.compile(r"[A-Za-z][A-Za-z\d+.-]{0,31}://" + _AUTHORITY, re.ASCII)
_NAMES = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+(?:[ \t]*,[ \t]*[!#$%&'*+.^_`|~0-9A-Za-z-]+)*")


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What is open, and to whom."""

    is_open: Callable[[str], bool]
    """Whether a path needs no key."""
    origins: Collection[str] = ()
    """Origins beside our own that a browser may call from, for example ``https://chat.example.org``."""
    is_paid: Callable[[str], bool] = lambda path: False
    """Whether what is behind a path is answered without a key, for whoever pays."""

    def knows_host(self, host: str) -> bool:
        """Whether a browser that resolved ``host`` may have meant us: an address, a name of ours."""
        name = urlsplit(f"//{host}").hostname or ""
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


class GuardMiddleware:
    """The outermost layer: an id for every answer, checks before it, and one shape for every failure."""

    def __init__(self, app: ASGIApp, doors: AccessRules, keys: KeyRing) -> None:
        self._app = app
        self._doors = doors
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = f"req_{secrets.token_hex(12)}"
        if scope["type"] != "http":
            await error_response(NotFound("websockets are not spoken here"), scope)(scope, receive, send)
            return
        scope["app"] = (
            self  # where there is an app, Starlette raises its 404 and 405: else they are plain text
        )
        scope["request_id"] = request_id
        request, incoming = Request(scope), Incoming(receive)
        started = False

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                self._label(headers, request)
                if not await incoming.drained() and scope["http_version"].startswith("1"):
                    headers["connection"] = "close"
                started = True
            await send(message)

        try:
            answer = self._admit(request)
            await (answer or self._app)(scope, incoming, labelled)
        except ShoalError as error:
            if started:
                raise
            await error_response(error, scope)(scope, incoming, labelled)
        except Exception:
            # The last stop: a defect that one request has met must not end the server, nor tell its insides.
            log.exception("%s: a defect", request_id)
            if started:
                raise
            await error_response(Defect(request_id), scope)(scope, incoming, labelled)

    def _admit(self, request: Request) -> Response | None:
        """Let the request pass, or answer it here (a CORS preflight).

        Raises:
            BadRequest: a host or an origin that can be none, or a protection that there is not.
            Forbidden: a browser, or a caller without a key, by a host name or origin that is not ours.
            Unauthorized: no key where one is needed, or a wrong one.
            OutOfResources: it is not known which keys are good.
        """
        headers, is_open = request.headers, self._doors.is_open(request.scope["path"])
        if not is_open:
            self._keys.check_known()
        key = _presented(headers)
        caller = self._keys.find(key) if key is not None else None
        browser = any(name in headers for name in BROWSERS)
        if not browser and caller is None and key is not None and self._keys.any and not is_open:
            raise _unknown_key()
        if browser or caller is None:
            self._check_way(headers, browser)
        origin = headers.get("origin")
        if origin in self._doors.origins and "access-control-request-method" in headers:
            return _preflight(headers)
        if not is_open:
            request.scope["caller"] = protected(caller or self._without_key(request), headers)
        return None

    def _check_way(self, headers: Headers, browser: bool) -> None:
        """Refuse what came by a name that others may have bound to our address, or from other pages.

        Raises:
            BadRequest, Forbidden: as :meth:`_admit`.
        """
        host, origin = headers.get("host"), headers.get("origin")
        if host is None and not browser:
            return  # HTTP/1.0, as health checks speak it and no browser does
        _check_names(headers)
        host = host or ""
        if not self._doors.knows_host(host):
            raise Forbidden(
                f"this gateway is not known as {host[:100]!r}",
                check="use the address that the gateway printed, or send an API key; to allow another name, "
                "add it to the setting gateway_origins",
            )
        if origin is not None and not self._doors.allows_origin(origin, host):
            raise Forbidden(
                f"pages of {origin[:100]!r} may not call this gateway",
                check="add this origin to the setting gateway_origins",
            )

    def _without_key(self, request: Request) -> Caller:
        if self._doors.is_paid(request.scope["path"]):
            return PAYING
        if self._keys.any:
            raise _unknown_key()
        if self._keys.needed:
            raise Unauthorized(
                "gateways that share a database answer nobody without an API key, and there is none",
                check="run shoal key create NAME with the same setting database",
            )
        if not _on_this_machine(request):
            raise Unauthorized(
                "without an API key only this machine is served",
                check="run shoal key create NAME on the gateway's machine",
            )
        return LOCAL

    def _label(self, headers: MutableHeaders, request: Request) -> None:
        headers["x-request-id"] = request.scope["request_id"]
        if speaks_anthropic(request.scope):
            headers["request-id"] = request.scope["request_id"]
        headers.setdefault("cache-control", "no-store")
        headers["x-content-type-options"] = "nosniff"
        origin = request.headers.get("origin")
        if origin is not None and origin in self._doors.origins:
            headers["access-control-allow-origin"] = origin
            headers["access-control-expose-headers"] = CORS_EXPOSED
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


def _check_names(headers: Headers) -> None:
    """Raises BadRequest: a host or an origin that can be none. An empty host is a name, of nobody."""
    host, origin = headers.get("host", ""), headers.get("origin", "null")
    if host and not _is_name(_HOST, host):
        raise BadRequest(f"the header Host is {host[:100]!r}, which is no host", param="host")
    if origin != "null" and not _is_name(_ORIGIN, origin):
        raise BadRequest(f"the header Origin is {origin[:100]!r}, which is no origin", param="origin")


def _is_name(pattern: re.Pattern[str], text: str) -> bool:
    """Whether it is written as ``pattern`` has it, with a port that can be and brackets around an address."""
    found = pattern.fullmatch(text)
    if found is None or int(found["port"] or 0) > MAX_PORT:
        return False
    try:
        urlsplit(f"//{text.rpartition('//')[2]}")
    except ValueError:  # brackets that hold no address
        return False
    return True


def _unknown_key() -> Unauthorized:
    return Unauthorized(
        "the API key is missing or unknown",
        check="send the header Authorization: Bearer KEY or x-api-key: KEY; shoal key create NAME makes one",
    )


def _preflight(headers: Headers) -> Response:
    """A page of an allowed origin may send whatever it asks for: what we do not know we ignore."""
    asked = headers.get("access-control-request-headers", "").strip()
    fits = len(asked) <= MAX_PREFLIGHT and _NAMES.fullmatch(asked)
    allowed = {
        "access-control-allow-methods": CORS_METHODS,
        "access-control-allow-headers": asked if fits else CORS_HEADERS,
        "access-control-max-age": PREFLIGHT_S,
        "vary": "access-control-request-headers",
    }
    if headers.get("access-control-request-private-network") == "true":  # from the internet to a home network
        allowed["access-control-allow-private-network"] = "true"
    return Response(status_code=204, headers=allowed)


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
