"""Has the router lead a public port to ours, for as long as we run.

NAT-PMP is asked first, for it is two datagrams, then UPnP, then PCP. What the router says is believed as far
as it can be: it is asked by its address on our own network, its public address has to be one, and nobody
announces that before peers outside bear it out (:class:`shoal.net.reach.reachability.Reachability`).
"""

from __future__ import annotations

import ipaddress
import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import h11
import trio

from shoal.errors import ChannelClosed
from shoal.net.addresses import is_private, to_multiaddr
from shoal.net.mapping import natpmp, pcp, upnp
from shoal.net.mapping.gateway import gateway_of

ANSWERED_WITHIN_S = 2.0
ANSWER_LIMIT = 1100
"""Bytes of a datagram (RFC 6887, section 7)."""
TRIES = 3
"""Datagrams, each of which waits twice as long as the one before, from a quarter of a second on."""
LEASE_S = 1200
"""What is asked for. It ends by itself should we end without giving it back."""
RENEW_S = 60.0
"""Often, for a router that was switched off and on has forgotten it."""
SOONEST_S = 10.0
"""A router that gives less than twice as long is asked so often, and no sooner."""
AGAIN_S = 300.0
"""When a router that gave nothing, or whose lease is over, is asked again."""
RETURNED_WITHIN_S = 1.5
PORTS_TRIED = 3

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MappedPort:
    """A public address that leads to our port."""

    host: str
    port: int
    lease_s: int = LEASE_S
    """For how long, unless it is renewed."""

    @property
    def multiaddr(self) -> str:
        return to_multiaddr(self.host, self.port)


class PortProtocol(Protocol):
    """One way to ask a router."""

    async def map(self, port: int, wanted: int) -> MappedPort:
        """Have a public port, ``wanted`` if that is free; asked again it renews it.

        Raises:
            ChannelClosed: the router does not do that, or has no public address itself.
        """
        ...

    async def unmap(self, port: int, public: int) -> None:
        """Give it back. Raises as :meth:`map`."""
        ...


@dataclass(frozen=True, slots=True)
class _Lease:
    """A port that a router may still lead to ours."""

    public: int
    until: float


class PortMapper:
    """The mapping of one port.

    Args:
        protocols: asked in this order.
    """

    def __init__(self, port: int, protocols: list[PortProtocol]) -> None:
        self._port = port
        self._protocols = protocols
        self._by: PortProtocol | None = None
        self._leases: dict[PortProtocol, _Lease] = {}
        """Each the last that a protocol has given, until it is over: also where a renewal had no answer."""
        self.mapped: MappedPort | None = None
        """What the router gave us, if it did."""

    async def run(self) -> None:
        """Have a mapping until cancelled; then it is given back."""
        try:
            while True:
                await self._ask()
                await trio.sleep(self._rest_s())
        finally:
            with trio.move_on_after(RETURNED_WITHIN_S, shield=True):
                await self._give_back()

    def _rest_s(self) -> float:
        """Seconds until the router is asked again: in half of the time that it gave, if that is little."""
        if not self._held():
            return AGAIN_S
        lease_s = self.mapped.lease_s if self.mapped else LEASE_S
        return min(RENEW_S, max(SOONEST_S, lease_s / 2))

    async def _ask(self) -> None:
        held = self._held()
        for protocol in [self._by] if self._by else self._protocols:
            wanted = held[protocol].public if protocol in held else self._port
            try:
                mapped = await protocol.map(self._port, wanted)
            except ChannelClosed as error:
                log.debug("the router maps no port: %s", error.message)
                continue
            if not 0 < mapped.port < 65_536 or mapped.lease_s <= 0:
                log.debug("the router gave %s, which nobody can reach", mapped)
                continue
            self.mapped, self._by = mapped, protocol
            until = trio.current_time() + min(LEASE_S, mapped.lease_s)
            self._leases[protocol] = _Lease(mapped.port, until)
            return
        self.mapped = self._by = None

    def _held(self) -> dict[PortProtocol, _Lease]:
        """What a router may lead to us now."""
        now = trio.current_time()
        return {protocol: lease for protocol, lease in self._leases.items() if now < lease.until}

    async def _give_back(self) -> None:
        for protocol, lease in self._held().items():
            try:
                await protocol.unmap(self._port, lease.public)
            except ChannelClosed as error:
                log.debug("the router keeps port %d for a while: %s", lease.public, error.message)


class _Datagrams:
    """Questions to the router of this machine's own network, each one datagram, as its answer is."""

    _name: str

    def __init__(self, gateway: str | None = None, port: int = natpmp.PORT) -> None:
        self._gateway = gateway
        self._port = port

    async def _ask(self, question: Callable[[str], bytes]) -> bytes:
        """The answer to what ``question`` makes of our own address."""
        try:
            gateway = self._gateway or await trio.to_thread.run_sync(gateway_of)
        except (OSError, ValueError) as error:
            raise ChannelClosed(f"this machine does not tell its router ({error})") from error
        if gateway is None:
            raise ChannelClosed("no router is known")
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as asking:
            try:
                # Connected: whoever else sends something is not heard.
                await asking.connect((gateway, self._port))
                words = question(asking.getsockname()[0])
                for number in range(TRIES):
                    await asking.send(words)
                    with trio.move_on_after(0.25 * 2**number):
                        return await asking.recv(ANSWER_LIMIT)
            except OSError as error:
                raise ChannelClosed(f"the router does not speak {self._name} ({error})") from error
        raise ChannelClosed(f"the router does not answer to {self._name}")


class NatPmp(_Datagrams):
    """Implements :class:`PortProtocol` over UDP, with the router of this machine's own network."""

    _name = "NAT-PMP"

    async def map(self, port: int, wanted: int) -> MappedPort:
        host = _public(natpmp.read_external_address(await self._ask(lambda _: natpmp.ask_address())))
        answer = await self._ask(lambda _: natpmp.ask_port(port, wanted, LEASE_S))
        granted = natpmp.read_port(answer, port)
        return MappedPort(host, granted.port, granted.lease_s)

    async def unmap(self, port: int, public: int) -> None:
        natpmp.read_port(await self._ask(lambda _: natpmp.ask_port(port, 0, 0)), port)


class Pcp(_Datagrams):
    """The same by PCP, which some routers speak alone, those of providers who share addresses among them."""

    _name = "PCP"

    def __init__(self, gateway: str | None = None, port: int = natpmp.PORT) -> None:
        super().__init__(gateway, port)
        self._nonce = secrets.token_bytes(pcp.NONCE_BYTES)

    async def map(self, port: int, wanted: int) -> MappedPort:
        granted = await self._order(port, wanted, LEASE_S)
        if is_private(granted.host):
            # It tells its address only with a port, which nobody could reach.
            await self._order(port, granted.port, 0)
        return MappedPort(_public(granted.host), granted.port, granted.lease_s)

    async def unmap(self, port: int, public: int) -> None:
        await self._order(port, public, 0)

    async def _order(self, port: int, wanted: int, lease_s: int) -> pcp.PcpMapping:
        answer = await self._ask(lambda own: pcp.ask_mapping(own, self._nonce, port, wanted, lease_s))
        return pcp.read_mapping(answer, self._nonce, port)


class Upnp:
    """Implements :class:`PortProtocol` over SSDP and HTTP, with a router on a network of ours."""

    def __init__(self, group: tuple[str, int] = (upnp.GROUP, upnp.PORT)) -> None:
        self._group = group
        self._service: upnp.UpnpService | None = None

    async def map(self, port: int, wanted: int) -> MappedPort:
        try:
            service = self._service or await self._find()
            text, ours = await self._order(service, "GetExternalIPAddress", {}, "NewExternalIPAddress")
            host = _public(_address(text))
            public = await self._add(service, ours, port, wanted)
        except ChannelClosed:
            self._service = None  # it may have another address, or be another router
            raise
        self._service = service
        return MappedPort(host, public)

    async def unmap(self, port: int, public: int) -> None:
        service = self._service or await self._find()
        await self._order(service, "DeletePortMapping", upnp.delete_port(public))

    async def _add(self, service: upnp.UpnpService, ours: str, port: int, wanted: int) -> int:
        ports, lease_s = [wanted, *random.sample(range(20_000, 60_000), PORTS_TRIED - 1)], LEASE_S
        while ports:
            try:
                await self._order(service, "AddPortMapping", upnp.add_port(ours, port, ports[0], lease_s))
            except upnp.UpnpFault as fault:
                if fault.number == upnp.PERMANENT_ONLY and lease_s:
                    lease_s = 0
                elif fault.number == upnp.CONFLICT:
                    ports.pop(0)
                else:
                    raise
            else:
                return ports[0]
        raise ChannelClosed("every port that was asked for is somebody else's")

    async def _find(self) -> upnp.UpnpService:
        with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as searching:
            try:
                await searching.sendto(upnp.search(), self._group)
                with trio.move_on_after(ANSWERED_WITHIN_S):
                    while True:
                        datagram, sender = await searching.recvfrom(2048)
                        try:
                            return await self._describe(datagram, sender[0])
                        except ChannelClosed as error:
                            log.debug("%s: %s", sender[0], error.message)
            except OSError as error:
                raise ChannelClosed(f"nobody can be asked for UPnP ({error})") from error
        raise ChannelClosed("no router answers to UPnP")

    async def _describe(self, datagram: bytes, sender: str) -> upnp.UpnpService:
        if not is_private(sender):
            raise ChannelClosed("not on our own network")
        host, port, path = upnp.read_location(datagram, sender)
        status, text, _ = await _http(
            host, port, h11.Request(method="GET", target=path, headers=[("Host", host)])
        )
        upnp.read_result(status, text)
        return upnp.read_description(text, host, port)

    async def _order(
        self, service: upnp.UpnpService, action: str, arguments: dict[str, str], name: str = ""
    ) -> tuple[str, str]:
        """What the answer says of ``name``, and our own address as the router sees it."""
        body, soap_action = upnp.order(action, arguments, service)
        headers = [
            ("Host", f"{service.host}:{service.port}"),
            ("Content-Type", 'text/xml; charset="utf-8"'),
            ("Content-Length", str(len(body))),
            ("SOAPAction", soap_action),
            ("Connection", "close"),
        ]
        request = h11.Request(method="POST", target=service.path, headers=headers)
        status, text, ours = await _http(service.host, service.port, request, body)
        return upnp.read_result(status, text, name), ours


def _public(host: str) -> str:
    """The router's own address, before a port is asked for: behind another router nothing comes of one."""
    if is_private(host):
        raise ChannelClosed(f"the router's own address {host} is no public one")
    return host


def _address(text: str) -> str:
    try:
        return str(ipaddress.IPv4Address(text))
    except ValueError as error:
        raise ChannelClosed(f"the router's public address is {text!r}") from error


async def _http(host: str, port: int, request: h11.Request, body: bytes = b"") -> tuple[int, str, str]:
    """Status and text of an answer, and our address. Raises ChannelClosed: there is none in time."""
    connection, status, text = h11.Connection(h11.CLIENT), 0, bytearray()
    try:
        with trio.fail_after(ANSWERED_WITHIN_S):
            async with await trio.open_tcp_stream(host, port) as stream:
                ours = str(stream.socket.getsockname()[0])
                events = (request, *([h11.Data(data=body)] if body else []), h11.EndOfMessage())
                await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
                while not isinstance(
                    event := connection.next_event(), h11.EndOfMessage | h11.ConnectionClosed
                ):
                    if event is h11.NEED_DATA:
                        connection.receive_data(await stream.receive_some(4096))
                    elif isinstance(event, h11.Response):
                        status = event.status_code
                    elif isinstance(event, h11.Data):
                        text += event.data
                        if len(text) > upnp.TEXT_LIMIT:
                            raise ChannelClosed("the router does not end its answer")
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, h11.RemoteProtocolError) as error:
        raise ChannelClosed(f"the router at {host}:{port} does not answer ({error!r})") from error
    return status, text.decode("utf-8", "replace"), ours
