"""A gateway's side of UPnP: it is found by SSDP, describes itself, and takes orders in SOAP.

As much of InternetGatewayDevice:1 as those who want a port forwarded ask for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from shoal.testing.natlab.gateway.firewall import LAN_ADDRESS
from shoal.testing.natlab.gateway.port_table import LONGEST_LEASE_S, PortMapping, PortTable, TransportName

SSDP_GROUP, SSDP_PORT = "239.255.255.250", 1900
HTTP_PORT = 5000
MAX_BODY = 1 << 16

_DEVICE = "urn:schemas-upnp-org:device:"
_ROOT = f"{_DEVICE}InternetGatewayDevice:1"
_SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
_KNOWN = ("upnp:rootdevice", _ROOT, f"{_DEVICE}WANDevice:1", f"{_DEVICE}WANConnectionDevice:1", _SERVICE)
_UUID = "uuid:5f0a6c1e-0000-4000-8000-000000000001"
_LOCATION = f"http://{LAN_ADDRESS}:{HTTP_PORT}/description.xml"


def _device(kind: str, inside: str) -> str:
    name = kind.partition(":")[0]
    return (
        f"<device><deviceType>{_DEVICE}{kind}</deviceType><friendlyName>{name}</friendlyName>"
        f"<manufacturer>Shoal</manufacturer><modelName>a lab's gateway</modelName><UDN>{_UUID}</UDN>"
        f"{inside}</device>"
    )


_CONNECTION = (
    f"<serviceList><service><serviceType>{_SERVICE}</serviceType>"
    "<serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId><SCPDURL>/service.xml</SCPDURL>"
    "<controlURL>/control</controlURL><eventSubURL>/events</eventSubURL></service></serviceList>"
)


def _list(device: str) -> str:
    return f"<deviceList>{device}</deviceList>"


DESCRIPTION = (
    '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0">'
    "<specVersion><major>1</major><minor>0</minor></specVersion>"
    + _device(
        "InternetGatewayDevice:1",
        _list(_device("WANDevice:1", _list(_device("WANConnectionDevice:1", _CONNECTION)))),
    )
    + "</root>"
)


class SoapFault(Exception):
    """An order that is refused, by UPnP's own numbers."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number
        self.text = text


def answer_search(datagram: bytes) -> list[bytes]:
    """The answers to an SSDP datagram: none unless it looks for what we are."""
    lines = datagram.decode("latin-1").split("\r\n")
    headers = {
        name.strip().upper(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    if not lines[0].startswith("M-SEARCH") or headers.get("MAN") != '"ssdp:discover"':
        return []
    target = headers.get("ST", "")
    found = _KNOWN if target == "ssdp:all" else [known for known in _KNOWN if known == target]
    return [
        (
            "HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nEXT:\r\nSERVER: Linux/6 UPnP/1.1 lab/1\r\n"
            f"LOCATION: {_LOCATION}\r\nST: {kind}\r\nUSN: {_UUID}::{kind}\r\n\r\n"
        ).encode()
        for kind in found
    ]


class GatewayOrders:
    """What a control point may order."""

    def __init__(self, public: str, table: PortTable) -> None:
        self._public = public
        self._table = table

    def carry_out(self, action: str, arguments: Mapping[str, str], host: str) -> dict[str, str]:
        """What the action gives back.

        Args:
            host: address of who orders it.

        Raises:
            SoapFault: it is refused.
        """
        match action:
            case "GetExternalIPAddress":
                return {"NewExternalIPAddress": self._public}
            case "GetStatusInfo":
                return {
                    "NewConnectionStatus": "Connected",
                    "NewLastConnectionError": "ERROR_NONE",
                    "NewUptime": "1",
                }
            case "AddPortMapping":
                self._add(arguments, host)
                return {}
            case "DeletePortMapping":
                self._table.remove(self._mapped(arguments))
                return {}
            case "GetSpecificPortMappingEntry":
                mapping = self._mapped(arguments)
                return {
                    "NewInternalPort": str(mapping.port),
                    "NewInternalClient": mapping.address,
                    "NewEnabled": "1",
                    "NewPortMappingDescription": "",
                    "NewLeaseDuration": str(mapping.lease_s),
                }
            case _:
                raise SoapFault(401, "Invalid Action")

    def _add(self, arguments: Mapping[str, str], host: str) -> None:
        if arguments.get("NewInternalClient") != host:
            raise SoapFault(606, "Action not authorized")  # nobody opens ports for others
        lease_s = _number(arguments, "NewLeaseDuration", LONGEST_LEASE_S)
        wanted = PortMapping(
            _protocol(arguments),
            _number(arguments, "NewExternalPort", 65_535),
            host,
            _number(arguments, "NewInternalPort", 65_535),
            lease_s or LONGEST_LEASE_S,
        )
        if not wanted.public_port or not wanted.port:
            raise SoapFault(716, "WildCardNotPermittedInExtPort")
        if not self._table.add(wanted):
            raise SoapFault(718, "ConflictInMappingEntry")

    def _mapped(self, arguments: Mapping[str, str]) -> PortMapping:
        found = self._table.find(_protocol(arguments), _number(arguments, "NewExternalPort", 65_535))
        if found is None:
            raise SoapFault(714, "NoSuchEntryInArray")
        return found


def _protocol(arguments: Mapping[str, str]) -> TransportName:
    match arguments.get("NewProtocol"):
        case "TCP":
            return "tcp"
        case "UDP":
            return "udp"
        case _:
            raise SoapFault(402, "Invalid Args")


def _number(arguments: Mapping[str, str], name: str, most: int) -> int:
    text = arguments.get(name, "")
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) > most:
        raise SoapFault(402, "Invalid Args")
    return int(text)


def serve_http(
    orders: GatewayOrders, address: tuple[str, int] = (LAN_ADDRESS, HTTP_PORT)
) -> ThreadingTCPServer:
    """A server of the description and of orders, listening already."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            found = self.path == "/description.xml"
            self._answer(HTTPStatus.OK if found else HTTPStatus.NOT_FOUND, DESCRIPTION if found else "")

        def do_POST(self) -> None:
            body = self.rfile.read(min(int(self.headers.get("Content-Length", "0")), MAX_BODY))
            try:
                action, arguments = _read_order(body)
                given = orders.carry_out(action, arguments, self.client_address[0])
            except SoapFault as fault:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, _envelope(_fault(fault)))
                return
            inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in given.items())
            self._answer(
                HTTPStatus.OK,
                _envelope(f'<u:{action}Response xmlns:u="{_SERVICE}">{inside}</u:{action}Response>'),
            )

        def _answer(self, status: HTTPStatus, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", 'text/xml; charset="utf-8"')
            self.send_header("Content-Length", str(len(body.encode())))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads a log of it."""

    # http.server's own would ask for the name of its address, and here nobody answers.
    return ThreadingTCPServer(address, Handler)


def _read_order(body: bytes) -> tuple[str, dict[str, str]]:
    try:
        action = ElementTree.fromstring(body)[0][0]
    except (ElementTree.ParseError, IndexError):
        raise SoapFault(401, "Invalid Action") from None
    return action.tag.rpartition("}")[2], {argument.tag: argument.text or "" for argument in action}


def _envelope(inside: str) -> str:
    return (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
        + inside
        + "</s:Body></s:Envelope>"
    )


def _fault(fault: SoapFault) -> str:
    return (
        "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
        '<UPnPError xmlns="urn:schemas-upnp-org:control-1-0">'
        f"<errorCode>{fault.number}</errorCode><errorDescription>{fault.text}</errorDescription>"
        "</UPnPError></detail></s:Fault>"
    )
