"""A port asked for by UPnP, over loopback: the lab's own gateway is searched for, read, and given orders."""

from __future__ import annotations

import socket
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from shoal.errors import ChannelClosed
from shoal.net.mapping import upnp
from shoal.net.mapping.port_mapper import LEASE_S, PORTS_TRIED, MappedPort, Upnp
from shoal.testing.natlab.gateway import upnp as gateway_upnp
from shoal.testing.natlab.gateway.port_table import PortMapping

PUBLIC, US, PORT = "20.0.1.1", "127.0.0.1", 4002


class Orders(gateway_upnp.GatewayOrders):
    """A gateway's orders, with the ports that other hosts have, and what it was ordered."""

    def __init__(self, public: str = PUBLIC, others: Callable[[int], bool] = lambda _: False) -> None:
        super().__init__(public, self)  # pyright: ignore[reportArgumentType]
        self.others = others
        self.only_for_ever = False
        self.held: dict[int, PortMapping] = {}
        self.ordered: list[str] = []

    def carry_out(self, action: str, arguments: Mapping[str, str], host: str) -> dict[str, str]:
        self.ordered.append(action)
        if self.only_for_ever and arguments.get("NewLeaseDuration", "0") != "0":
            raise gateway_upnp.SoapFault(upnp.PERMANENT_ONLY, "OnlyPermanentLeasesSupported")
        return super().carry_out(action, arguments, host)

    def find(self, protocol: str, public_port: int) -> PortMapping | None:
        return self.held.get(public_port)

    def add(self, wanted: PortMapping) -> bool:
        if self.others(wanted.public_port):
            return False
        self.held[wanted.public_port] = wanted
        return True

    def remove(self, mapping: PortMapping) -> None:
        del self.held[mapping.public_port]


@asynccontextmanager
async def device(orders: Orders) -> AsyncGenerator[Upnp]:
    """Who asks the lab's gateway, which is on this machine."""
    with gateway_upnp.serve_http(orders, (US, 0)) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        try:
            async with answering(server.server_address[1]) as asking:
                yield asking
        finally:
            await trio.to_thread.run_sync(server.shutdown)
            serving.join()


@asynccontextmanager
async def answering(port: int) -> AsyncGenerator[Upnp]:
    """Who asks a device whose description is on a port of loopback; another's, which has none, is first."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        await listening.bind((US, 0))

        async def answer() -> None:
            while True:
                datagram, sender = await listening.recvfrom(2048)
                await listening.sendto(b"HTTP/1.1 200 OK\r\n\r\n", sender)
                for found in gateway_upnp.answer_search(datagram):
                    at = f"{gateway_upnp.LAN_ADDRESS}:{gateway_upnp.HTTP_PORT}"
                    await listening.sendto(found.replace(at.encode(), f"{US}:{port}".encode()), sender)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            yield Upnp(group=listening.getsockname())
            nursery.cancel_scope.cancel()


async def test_a_router_is_found_and_a_port_asked_for_renewed_and_given_back() -> None:
    orders = Orders()
    async with device(orders) as router:
        mapped = await router.map(PORT, PORT)
        assert mapped == MappedPort(PUBLIC, PORT)
        assert await router.map(PORT, PORT) == mapped
        assert orders.held == {PORT: PortMapping("tcp", PORT, US, PORT, LEASE_S)}
        await router.unmap(PORT, PORT)
    assert orders.held == {}
    assert orders.ordered == ["GetExternalIPAddress", "AddPortMapping"] * 2 + ["DeletePortMapping"]


async def test_a_port_is_given_back_to_a_router_that_has_to_be_found_again() -> None:
    orders = Orders()
    async with device(orders) as router:
        await router.map(PORT, PORT)
        orders.others = lambda _: True
        with pytest.raises(ChannelClosed):
            await router.map(PORT, PORT)
        await router.unmap(PORT, PORT)
    assert orders.held == {}


async def test_instead_of_another_hosts_port_another_one_is_asked_for() -> None:
    orders = Orders(others=lambda public: public == PORT)
    async with device(orders) as router:
        mapped = await router.map(PORT, PORT)
    assert mapped.port >= 20_000
    assert list(orders.held) == [mapped.port]


async def test_where_every_port_is_somebody_elses_that_is_said() -> None:
    orders = Orders(others=lambda _: True)
    async with device(orders) as router:
        with pytest.raises(ChannelClosed, match="somebody else's"):
            await router.map(PORT, PORT)
    assert orders.ordered.count("AddPortMapping") == PORTS_TRIED


async def test_a_router_that_knows_no_leases_is_asked_for_a_port_without_one() -> None:
    orders = Orders()
    orders.only_for_ever = True
    async with device(orders) as router:
        assert (await router.map(PORT, PORT)).port == PORT
    assert replace(orders.held[PORT], lease_s=0) == PortMapping("tcp", PORT, US, PORT, 0)
    assert orders.ordered.count("AddPortMapping") == 2


async def test_another_refusal_is_told_with_its_number() -> None:
    async with device(Orders()) as router:
        with pytest.raises(upnp.UpnpFault, match="716"):
            await router.map(PORT, 0)
        with pytest.raises(upnp.UpnpFault, match="714"):
            await router.unmap(PORT, PORT)


@pytest.mark.parametrize("public", ["10.0.0.1", "100.64.0.1", "0.0.0.0", "router.example"])
async def test_a_router_without_a_public_address_is_asked_for_no_port(public: str) -> None:
    orders = Orders(public)
    async with device(orders) as router:
        with pytest.raises(ChannelClosed, match="public"):
            await router.map(PORT, PORT)
    assert (orders.held, orders.ordered) == ({}, ["GetExternalIPAddress"])


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (2 * upnp.TEXT_LIMIT), "does not end its answer"),
        (b"HTTP/1.1 200 OK\r\n\r\n<root>a printer</root>", "forwards no ports"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "refuses"),
        (b"nonsense\r\n\r\n", "RemoteProtocolError"),
    ],
)
async def test_a_device_that_describes_no_router_is_left(
    said: bytes, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("shoal.net.mapping.port_mapper.ANSWERED_WITHIN_S", 1.0)
    caplog.set_level("DEBUG", "shoal.net.mapping.port_mapper")
    (listener,) = await trio.open_tcp_listeners(0, host=US)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some(4096)
            await stream.send_all(said)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        async with answering(listener.socket.getsockname()[1]) as router:
            with pytest.raises(ChannelClosed, match="no router answers"):
                await router.map(PORT, PORT)
        nursery.cancel_scope.cancel()
    first, second = [record.getMessage() for record in caplog.records]
    assert "names no description" in first
    assert why in second
