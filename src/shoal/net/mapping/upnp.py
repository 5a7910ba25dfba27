"""UPnP as one who wants a port speaks it: found by SSDP, described in XML, told in SOAP. No I/O.

Of the XML only a few elements are read, with expressions, from a text of bounded length: a router's answers
are a stranger's, and a parser would do what they say.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import unescape
from urllib.parse import urljoin, urlsplit
from xml.sax.saxutils import escape

from shoal.errors import ChannelClosed

GROUP, PORT = "239.255.255.250", 1900
TEXT_LIMIT = 1 << 16
"""Bytes of an answer that are read."""
PERMANENT_ONLY, CONFLICT = 725, 718
_DEVICE = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
_SERVICE = re.compile(
    r"<serviceType>\s*(urn:schemas-upnp-org:service:WAN(?:IP|PPP)Connection:[12])\s*</serviceType>"
)
_CONTROL = re.compile(r"<controlURL>\s*([^<\s]{1,512})\s*</controlURL>")
_ERROR = re.compile(r"<errorCode>\s*([0-9]{1,4})\s*</errorCode>")


@dataclass(frozen=True, slots=True)
class UpnpService:
    """Where a router takes orders."""

    host: str
    port: int
    path: str
    kind: str


class UpnpFault(ChannelClosed):
    """The router refuses, with UPnP's own number for why."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the router refuses: UPnP's error {number}")
        self.number = number


def search() -> bytes:
    """The datagram that asks every device of a network whether it is a router."""
    lines = (
        "M-SEARCH * HTTP/1.1",
        f"HOST: {GROUP}:{PORT}",
        'MAN: "ssdp:discover"',
        "MX: 1",
        f"ST: {_DEVICE}",
        "",
        "",
    )
    return "\r\n".join(lines).encode()


def read_location(datagram: bytes, sender: str) -> tuple[str, int, str]:
    """Host, port and path of the description that an answer to :func:`search` names.

    Raises:
        ChannelClosed: it names none, or one at another host than who answers: then we would knock there.
    """
    found = re.search(rb"(?im)^LOCATION:[ \t]*(\S{1,512})[ \t]*\r?$", datagram[:TEXT_LIMIT])
    if found is None:
        raise ChannelClosed("a device names no description")
    return _at(found[1].decode("latin-1"), sender)


def read_description(text: str, host: str, port: int) -> UpnpService:
    """Raises ChannelClosed: it describes nothing that forwards ports, or something at another host."""
    for service in _SERVICE.finditer(text):
        control = _CONTROL.search(text, service.end(), text.find("</service>", service.end()))
        if control is not None:
            return UpnpService(*_at(unescape(control[1]), host, f"http://{host}:{port}/"), service[1])
    raise ChannelClosed("the device forwards no ports")


def order(action: str, arguments: dict[str, str], service: UpnpService) -> tuple[bytes, str]:
    """The body and the ``SOAPAction`` of an order."""
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in arguments.items())
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        f'<u:{action} xmlns:u="{service.kind}">{inside}</u:{action}></s:Body></s:Envelope>'
    )
    return body.encode(), f'"{service.kind}#{action}"'


def add_port(client: str, port: int, public: int, lease_s: int) -> dict[str, str]:
    """The arguments of ``AddPortMapping``."""
    return {
        **delete_port(public),
        "NewInternalPort": str(port),
        "NewInternalClient": client,
        "NewEnabled": "1",
        "NewPortMappingDescription": "shoal",
        "NewLeaseDuration": str(lease_s),
    }


def delete_port(public: int) -> dict[str, str]:
    """The arguments of ``DeletePortMapping``."""
    return {"NewRemoteHost": "", "NewExternalPort": str(public), "NewProtocol": "TCP"}


def read_result(status: int, text: str, name: str = "") -> str:
    """What the answer to an order says of ``name``.

    Raises:
        UpnpFault: it is refused.
        ChannelClosed: it is no such answer.
    """
    if status != 200:
        number = _ERROR.search(text)
        raise UpnpFault(int(number[1]) if number else 0)
    # One way to match only: an answer that makes the search try many would hold up the whole node.
    found = re.search(rf"<{name}>([^<]{{0,128}})</{name}>", text) if name else None
    if name and found is None:
        raise ChannelClosed(f"the router does not tell its {name}")
    return found[1].strip() if found else ""


def _at(url: str, host: str, base: str = "") -> tuple[str, int, str]:
    try:
        parts = urlsplit(urljoin(base, url))
        port = parts.port or 80
    except ValueError as error:
        raise ChannelClosed(f"the router names {url!r}, which is no address") from error
    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    if parts.scheme != "http" or parts.hostname != host or not re.fullmatch("[!-~]+", path):
        raise ChannelClosed(f"the router names {url!r}, which is not at {host}")
    return host, port, path
