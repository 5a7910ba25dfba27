"""A port of the router: what is said to it, what it may say, and for how long there is one.

Against the gateway of the NAT lab, in memory; test_upnp.py asks it over loopback, and tests/natlab over the
lab's network.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.mapping import natpmp, pcp, upnp
from shoal.net.mapping.gateway import read_routes
from shoal.net.mapping.port_mapper import AGAIN_S, LEASE_S, RENEW_S, MappedPort, NatPmp, Pcp, PortMapper
from shoal.testing.natlab.gateway import natpmp as gateway_natpmp
from shoal.testing.natlab.gateway import pcp as gateway_pcp
from shoal.testing.natlab.gateway import upnp as gateway_upnp
from shoal.testing.natlab.gateway.port_table import PortMapping

PUBLIC, US = "20.0.1.1", "192.168.7.2"


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class Table:
    """A gateway's forwarded ports."""

    def __init__(self, *mappings: PortMapping) -> None:
        self.held = list(mappings)

    def __iter__(self) -> Iterator[PortMapping]:
        return iter(list(self.held))

    def find(self, protocol: str, public_port: int) -> PortMapping | None:
        return next((m for m in self.held if (m.protocol, m.public_port) == (protocol, public_port)), None)

    def add(self, wanted: PortMapping) -> bool:
        old = self.find(wanted.protocol, wanted.public_port)
        if old and old.address != wanted.address:
            return False
        self.held = [m for m in self.held if m is not old] + [wanted]
        return True

    def remove(self, mapping: PortMapping) -> None:
        self.held.remove(mapping)


async def answer(
    protocol: ModuleType, table: Table, public: str = PUBLIC, *, task_status: trio.TaskStatus[int]
) -> None:
    """The lab's gateway, on a port of loopback. Of each two datagrams it loses one."""
    with trio.socket.socket(trio.socket.AF_INET, trio.socket.SOCK_DGRAM) as listening:
        await listening.bind(("127.0.0.1", 0))
        task_status.started(listening.getsockname()[1])
        while True:
            await listening.recvfrom(99)
            request, sender = await listening.recvfrom(99)
            if protocol is gateway_pcp:  # which must name the address that it is sent from
                said = gateway_pcp.answer_pcp(request, "127.0.0.1", public, 1, table)  # pyright: ignore
            else:
                said = gateway_natpmp.answer_natpmp(request, US, public, 1, table)  # pyright: ignore
            await listening.sendto(said or b"", sender)


# --- NAT-PMP ---------------------------------------------------------------------------------------------


async def test_a_port_is_asked_for_renewed_and_given_back_by_nat_pmp() -> None:
    table = Table(PortMapping("tcp", 4002, "192.168.7.9", 4002, 60))
    async with trio.open_nursery() as nursery:
        router = NatPmp("127.0.0.1", await nursery.start(answer, gateway_natpmp, table))
        mapped = await router.map(4002, 4002)
        assert mapped == MappedPort(PUBLIC, 4003)  # the one that was wanted is another host's
        assert await router.map(4002, 4003) == mapped
        assert [(m.address, m.port, m.lease_s) for m in table.held[1:]] == [(US, 4002, LEASE_S)]
        await router.unmap(4002, 4003)
        assert len(table.held) == 1
        nursery.cancel_scope.cancel()


# --- PCP -------------------------------------------------------------------------------------------------


async def test_a_port_is_asked_for_renewed_and_given_back_by_pcp() -> None:
    table = Table(PortMapping("tcp", 4002, "192.168.7.9", 4002, 60))
    async with trio.open_nursery() as nursery:
        router = Pcp("127.0.0.1", await nursery.start(answer, gateway_pcp, table))
        mapped = await router.map(4002, 4002)
        assert mapped == MappedPort(PUBLIC, 4003)
        assert await router.map(4002, 4003) == mapped
        assert [(m.port, m.lease_s) for m in table.held[1:]] == [(4002, LEASE_S)]
        await router.unmap(4002, 4003)
        assert len(table.held) == 1
        nursery.cancel_scope.cancel()


async def test_a_port_of_a_router_behind_another_is_given_back_at_once_by_pcp() -> None:
    table = Table()
    async with trio.open_nursery() as nursery:
        router = Pcp("127.0.0.1", await nursery.start(answer, gateway_pcp, table, "100.64.0.9"))
        with pytest.raises(ChannelClosed, match="is no public one"):
            await router.map(4002, 4002)
        nursery.cancel_scope.cancel()
    assert table.held == []


def test_a_refusal_and_an_answer_to_somebody_else_are_told_by_pcp() -> None:
    nonce, other = b"n" * 12, b"o" * 12
    table = Table()

    def answered(request: bytes, host: str = "192.168.7.2") -> bytes:
        return gateway_pcp.answer_pcp(request, host, PUBLIC, 1, table) or b""  # pyright: ignore

    request = pcp.ask_mapping("192.168.7.2", nonce, 4002, 4002, 60)
    assert pcp.read_mapping(answered(request), nonce, 4002) == pcp.PcpMapping(PUBLIC, 4002, 60)
    with pytest.raises(ChannelClosed, match="another port"):
        pcp.read_mapping(answered(request), other, 4002)
    with pytest.raises(ChannelClosed, match="another address"):
        pcp.read_mapping(answered(request, "192.168.7.3"), nonce, 4002)
    # What a router that knows only NAT-PMP answers.
    old = gateway_natpmp.answer_natpmp(request, US, PUBLIC, 1, table) or b""  # pyright: ignore
    with pytest.raises(ChannelClosed, match="another version"):
        pcp.read_mapping(old, nonce, 4002)


@pytest.mark.parametrize("private", ["10.0.0.1", "0.0.0.0"])
async def test_behind_another_router_no_port_is_asked_for(private: str) -> None:
    table = Table()
    async with trio.open_nursery() as nursery:
        router = NatPmp("127.0.0.1", await nursery.start(answer, gateway_natpmp, table, private))
        with pytest.raises(ChannelClosed, match="is no public one"):
            await router.map(4002, 4002)
        nursery.cancel_scope.cancel()
    assert table.held == []


async def test_where_nobody_speaks_it_that_is_said() -> None:
    with pytest.raises(ChannelClosed):
        await NatPmp("127.0.0.1", 9).map(4002, 4002)


@given(
    st.binary(max_size=20)
    | st.builds(bytes.__add__, st.sampled_from([b"\0\x80\0\0", b"\0\x82\0\0", b"\2\x81\0\0"]), st.binary())
)
def test_whatever_a_router_answers_is_read_or_refused(answer: bytes) -> None:
    for read in (
        natpmp.read_external_address,
        lambda answer: natpmp.read_port(answer, 4002),
        lambda answer: pcp.read_mapping(answer, b"n" * 12, 4002),
    ):
        with suppress(ChannelClosed):
            read(answer)


def test_a_refusal_is_told_in_words() -> None:
    with pytest.raises(ChannelClosed, match="switched off"):
        natpmp.read_external_address(b"\0\x80\0\x02" + bytes(8))


# --- UPnP ------------------------------------------------------------------------------------------------


def service() -> upnp.UpnpService:
    """That of the lab's gateway, found as on a network."""
    (answer,) = gateway_upnp.answer_search(upnp.search())
    host, port, path = upnp.read_location(answer, gateway_upnp.LAN_ADDRESS)
    assert path == "/description.xml"
    return upnp.read_description(gateway_upnp.DESCRIPTION, host, port)


def ordered(table: Table, action: str, arguments: dict[str, str], name: str = "") -> str:
    """The answer of the lab's gateway to an order, read."""
    body, soap_action = upnp.order(action, arguments, service())
    assert soap_action.endswith(f'#{action}"')
    orders = gateway_upnp.GatewayOrders(PUBLIC, table)  # pyright: ignore
    said, given_ = gateway_upnp._read_order(body)  # pyright: ignore[reportPrivateUsage]
    try:
        inside = "".join(f"<{k}>{v}</{k}>" for k, v in orders.carry_out(said, given_, US).items())
        return upnp.read_result(200, gateway_upnp._envelope(inside), name)  # pyright: ignore[reportPrivateUsage]
    except gateway_upnp.SoapFault as fault:
        text = gateway_upnp._envelope(gateway_upnp._fault(fault))  # pyright: ignore[reportPrivateUsage]
        return upnp.read_result(500, text, name)


def test_an_answer_of_blanks_is_refused_at_once() -> None:
    blanks = "<NewExternalIPAddress>" + " " * 65_000
    began = time.process_time()
    with pytest.raises(ChannelClosed, match="does not tell its NewExternalIPAddress"):
        upnp.read_result(200, blanks, "NewExternalIPAddress")
    assert time.process_time() - began < 1  # a pattern that can match in many ways takes minutes
    assert upnp.read_result(200, "<Name> a </Name>", "Name") == "a"


def test_the_labs_gateway_understands_each_order() -> None:
    table = Table(PortMapping("tcp", 7000, "192.168.7.9", 1, 60))
    assert ordered(table, "GetExternalIPAddress", {}, "NewExternalIPAddress") == PUBLIC
    ordered(table, "AddPortMapping", upnp.add_port(US, 4002, 4002, 60))
    assert (table.held[1].address, table.held[1].port) == (US, 4002)
    with pytest.raises(upnp.UpnpFault) as caught:
        ordered(table, "AddPortMapping", upnp.add_port(US, 4002, 7000, 60))
    assert caught.value.number == upnp.CONFLICT
    ordered(table, "DeletePortMapping", upnp.delete_port(4002))
    assert len(table.held) == 1


@pytest.mark.parametrize(
    "location",
    [
        "http://10.9.9.9:80/x",
        "http://192.168.7.1@10.9.9.9/x",
        "https://192.168.7.1/x",
        "file:///etc/passwd",
        "http://192.168.7.1:99999/x",
        "http://[::1/x",
        "http://192.168.7.1/\x01",
    ],
)
def test_a_device_sends_us_to_no_other_host(location: str) -> None:
    with pytest.raises(ChannelClosed):
        upnp.read_location(f"HTTP/1.1 200 OK\r\nLOCATION: {location}\r\n\r\n".encode(), "192.168.7.1")
    wanted = gateway_upnp.DESCRIPTION.replace("/control<", f"{location}<")
    with pytest.raises(ChannelClosed):
        upnp.read_description(wanted, "192.168.7.1", 5000)


@settings(max_examples=40)
@given(st.text(max_size=200), st.integers(100, 599))
def test_whatever_a_device_says_is_read_or_refused(text: str, status: int) -> None:
    for read in (
        lambda: upnp.read_description(text, "192.168.7.1", 80),
        lambda: upnp.read_result(status, text, "NewExternalIPAddress"),
        lambda: upnp.read_location(text.encode("utf-8", "replace"), "192.168.7.1"),
    ):
        with suppress(ChannelClosed):
            read()


def test_the_default_route_names_the_router() -> None:
    table = (
        "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "eth0 0007A8C0 00000000 0001 0 0 0 00FFFFFF 0 0 0\neth0 00000000 0107A8C0 0003 0 0 0 00000000 0 0 0\n"
    )
    assert read_routes(table) == "192.168.7.1"
    assert read_routes(table.splitlines()[0]) is None


# --- for as long as we run -------------------------------------------------------------------------------


class Router:
    """A way to ask, that gives what the test says."""

    def __init__(self, gives: MappedPort | None) -> None:
        self.gives = gives
        self.asked: list[int] = []
        self.returned: list[int] = []

    async def map(self, port: int, wanted: int) -> MappedPort:
        self.asked.append(wanted)
        if self.gives is None:
            raise ChannelClosed("no")
        return self.gives

    async def unmap(self, port: int, public: int) -> None:
        self.returned.append(public)


async def test_a_mapping_is_renewed_and_given_back_at_the_end(autojump_clock: MockClock) -> None:
    silent, speaks = Router(None), Router(MappedPort(PUBLIC, 9000))
    mapper = PortMapper(4002, [silent, speaks])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.run)
        await trio.sleep(3 * RENEW_S + 1)
        assert mapper.mapped == MappedPort(PUBLIC, 9000)
        assert (silent.asked, speaks.asked) == ([4002], [4002, 9000, 9000, 9000])
        nursery.cancel_scope.cancel()
    assert (silent.returned, speaks.returned) == ([], [9000])


async def test_a_mapping_that_ends_soon_is_renewed_before(autojump_clock: MockClock) -> None:
    router = Router(MappedPort(PUBLIC, 9000, lease_s=40))
    with trio.move_on_after(101):
        await PortMapper(4002, [router]).run()
    assert router.asked == [4002, *[9000] * 5]


async def test_a_router_that_forgets_is_asked_again(autojump_clock: MockClock) -> None:
    router = Router(MappedPort(PUBLIC, 9000))
    mapper = PortMapper(4002, [router])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.run)
        await trio.sleep(1)
        router.gives = None
        await trio.sleep(RENEW_S)
        assert mapper.mapped is None
        router.gives = MappedPort(PUBLIC, 9001)
        await trio.sleep(RENEW_S)
        assert mapper.mapped == MappedPort(PUBLIC, 9001)
        assert router.asked == [4002, 9000, 9000]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("silent_s", "returned"), [(LEASE_S - 2 * RENEW_S, [9000]), (LEASE_S, [])])
async def test_what_may_still_be_mapped_is_given_back(
    autojump_clock: MockClock, silent_s: float, returned: list[int]
) -> None:
    """A port that was ours so long ago may be another host's by now."""
    router = Router(MappedPort(PUBLIC, 9000))
    mapper = PortMapper(4002, [router])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.run)
        await trio.sleep(1)
        router.gives = None
        await trio.sleep(silent_s)
        assert mapper.mapped is None
        nursery.cancel_scope.cancel()
    assert router.returned == returned


async def test_a_router_that_gives_nothing_is_asked_seldom(autojump_clock: MockClock) -> None:
    router = Router(None)
    with trio.move_on_after(2 * AGAIN_S + 1):
        await PortMapper(4002, [router]).run()
    assert (router.asked, router.returned) == ([4002] * 3, [])


@pytest.mark.parametrize("port", [0, 65_536])
async def test_what_is_no_port_is_no_mapping(autojump_clock: MockClock, port: int) -> None:
    mapper = PortMapper(4002, [Router(MappedPort(PUBLIC, port)), Router(MappedPort(PUBLIC, 1, lease_s=0))])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mapper.run)
        await trio.sleep(2 * AGAIN_S)
        assert mapper.mapped is None
        nursery.cancel_scope.cancel()
