"""What each kind of network lets through, over plain sockets; links, and what happens to them."""

from __future__ import annotations

import errno
import socket
import struct
import time
from contextlib import ExitStack

import pytest

from shoal.errors import UsageError
from shoal.testing.natlab.lab import LabHost, NatLab
from shoal.testing.natlab.sites import LinkQuality, parse_sites

from .conftest import ALLOWED_S, WAIT_S, comes, dialled, listener, seen_from, udp

BEHIND_A_GATEWAY = ("a", "h1", "s", "f", "u")


@pytest.mark.parametrize("name", BEHIND_A_GATEWAY)
def test_behind_a_gateway_a_host_is_seen_at_its_gateways_address(lab: NatLab, name: str) -> None:
    host, public = lab.host(name), lab.host("p")
    with udp(host) as sender, udp(public) as observer:
        seen, _ = seen_from(sender, observer, (public.address, observer.getsockname()[1]))
    assert seen == host.public_address != host.address


def mapping(lab: NatLab, name: str, others_within_s: float = WAIT_S) -> tuple[int, set[int], list[bool]]:
    """A host's port, the public ones that two observers saw, and who may send to the first of them.

    Who: the observer, the observer from another port, the other observer, and somebody it never sent to.
    """
    p, q, stranger = lab.host("p"), lab.host("q"), lab.host("b")
    with ExitStack() as opened:
        sender, first, second, elsewhere, unknown = (
            opened.enter_context(udp(host)) for host in (lab.host(name), p, q, p, stranger)
        )
        seen = seen_from(sender, first, (p.address, first.getsockname()[1]))
        entered: list[bool] = []
        for other in (first, elsewhere, second, unknown):
            other.sendto(b"hello", seen)
            entered.append(comes(sender, ALLOWED_S if other is first else others_within_s))
        also = seen_from(sender, second, (q.address, second.getsockname()[1]))
        return sender.getsockname()[1], {seen[1], also[1]}, entered


@pytest.mark.parametrize("name", ["a", "u"])
def test_a_cone_has_one_port_for_all_and_lets_in_only_whom_it_was_sent_to(lab: NatLab, name: str) -> None:
    port, public_ports, entered = mapping(lab, name)
    assert public_ports == {port}
    assert entered == [True, False, False, False]


def test_a_full_cone_lets_everybody_in_at_a_port_that_was_sent_from(lab: NatLab) -> None:
    port, public_ports, entered = mapping(lab, "f", ALLOWED_S)
    assert public_ports == {port}
    assert entered == [True, True, True, True]


def test_a_symmetric_gateway_has_another_port_for_everybody(lab: NatLab) -> None:
    _, public_ports, entered = mapping(lab, "s")
    assert len(public_ports) == 2
    assert entered == [True, False, False, False]


@pytest.mark.parametrize("name", BEHIND_A_GATEWAY)
def test_who_dials_a_port_that_nothing_was_sent_from_hears_nothing(lab: NatLab, name: str) -> None:
    with listener(lab.host(name), 7000), pytest.raises(TimeoutError):
        dialled(lab.host("p"), lab.host(name).public_address, 7000, WAIT_S)


def punched(one: LabHost, other: LabHost, port: int) -> bool:
    """Whether both dial each other from and at this port at once, and are connected by that."""
    with ExitStack() as opened:
        both: list[socket.socket] = []
        for host in (one, other):
            both.append(opened.enter_context(host.socket()))
            both[-1].bind(("0.0.0.0", port))
            both[-1].setblocking(False)
        for dialling, peer in zip(both, (other, one), strict=True):
            with pytest.raises(BlockingIOError):
                dialling.connect((peer.public_address, port))
        until = time.monotonic() + ALLOWED_S
        while time.monotonic() < until:
            if all(_joined(dialling) for dialling in both):
                both[0].send(b"hello")
                both[1].settimeout(ALLOWED_S)
                return both[1].recv(5) == b"hello"
            time.sleep(0.01)
    return False


def _joined(dialling: socket.socket) -> bool:
    try:
        dialling.getpeername()
    except OSError:
        return False
    return True


def test_two_cones_that_dial_each_other_at_once_are_connected(lab: NatLab) -> None:
    assert punched(lab.host("a"), lab.host("b"), 7001)


def test_hosts_of_one_site_talk_without_the_internet_and_cannot_go_out_and_in_again(lab: NatLab) -> None:
    one, other = lab.host("h1"), lab.host("h2")
    assert one.public_address == other.public_address
    before = lab.carried("h1", "h2")
    with listener(other, 7002) as taking, dialled(one, other.address, 7002) as sending:
        sending.sendall(b"hello")
        assert taking.accept()[0].recv(5) == b"hello"
        with pytest.raises((TimeoutError, ConnectionRefusedError)):
            dialled(one, other.public_address, 7002, WAIT_S)
    assert lab.carried("h1", "h2") == before


def test_a_host_with_ipv6_alone_reaches_public_ones_by_it_and_nobody_by_ipv4(lab: NatLab) -> None:
    v, p = lab.host("v"), lab.host("p")
    six = next(address for address in p.addresses if ":" in address)
    with udp(v, family=socket.AF_INET6) as sender, udp(p, family=socket.AF_INET6) as observer:
        seen = seen_from(sender, observer, (six, observer.getsockname()[1]))
        assert seen[0] == v.address == v.public_address
        with udp(v) as four, pytest.raises(OSError, match="unreachable"):
            four.sendto(b"hello", (p.address, 7003))


def test_behind_a_dual_gateway_a_host_is_seen_at_its_own_ipv6_address_and_lets_in_only_answers(
    lab: NatLab,
) -> None:
    d, v = lab.host("d"), lab.host("v")
    assert not d.is_public
    own = next(address for address in d.addresses if ":" in address)
    with udp(d, family=socket.AF_INET6) as inside, udp(v, family=socket.AF_INET6) as outside:
        outside.sendto(b"hello", (own, inside.getsockname()[1]))
        assert not comes(inside, WAIT_S)
        seen = seen_from(inside, outside, (v.address, outside.getsockname()[1]))
        assert seen == (own, inside.getsockname()[1])
        outside.sendto(b"hello", seen)
        assert comes(inside)
    with udp(d) as sender, udp(lab.host("p")) as observer:
        seen = seen_from(sender, observer, (lab.host("p").address, observer.getsockname()[1]))
    assert seen[0] == d.public_address


def natpmp(host: LabHost, request: bytes) -> bytes:
    with udp(host) as asking:
        asking.sendto(request, ("192.168.7.1", 5351))
        return asking.recv(64)


def test_a_port_mapped_by_nat_pmp_leads_to_the_host_until_its_lease_ends(lab: NatLab) -> None:
    host, stranger = lab.host("u"), lab.host("q")
    version, opcode, result, _, address = struct.unpack(">BBHI4s", natpmp(host, b"\0\0"))
    assert (version, opcode, result, socket.inet_ntoa(address)) == (0, 128, 0, host.public_address)
    with listener(host, 7004) as listening:
        # Mapped for a second: from public port 7104 to 7004, TCP.
        answer = struct.unpack(">BBHIHHI", natpmp(host, struct.pack(">BBHHHI", 0, 2, 0, 7004, 7104, 1)))
        assert (answer[1], answer[2], *answer[4:]) == (130, 0, 7004, 7104, 1)
        with dialled(stranger, host.public_address, 7104):
            assert listening.accept()[1][0] == stranger.address
        time.sleep(1.2)
        with pytest.raises(TimeoutError):
            dialled(stranger, host.public_address, 7104, WAIT_S)


def test_a_port_is_mapped_and_given_back_by_upnp(lab: NatLab) -> None:
    """The whole way that a client goes: search, description, orders."""
    host, stranger = lab.host("u"), lab.host("q")
    url, service = found_by_ssdp(host)
    assert "<NewExternalIPAddress>20." in soap(host, url, service, "GetExternalIPAddress")[1]
    wanted = {
        "NewRemoteHost": "",
        "NewExternalPort": "7105",
        "NewProtocol": "TCP",
        "NewInternalPort": "7005",
        "NewInternalClient": host.address,
        "NewEnabled": "1",
        "NewPortMappingDescription": "test",
        "NewLeaseDuration": "60",
    }
    with listener(host, 7005) as listening:
        assert soap(host, url, service, "AddPortMapping", wanted)[0] == 200
        with dialled(stranger, host.public_address, 7105):
            assert listening.accept()[1][0] == stranger.address
        entry = {name: wanted[name] for name in ("NewRemoteHost", "NewExternalPort", "NewProtocol")}
        said = soap(host, url, service, "GetSpecificPortMappingEntry", entry)[1]
        assert "<NewInternalPort>7005<" in said
        assert soap(host, url, service, "DeletePortMapping", entry)[0] == 200
        with pytest.raises(TimeoutError):
            dialled(stranger, host.public_address, 7105, WAIT_S)
    assert "<errorCode>714<" in soap(host, url, service, "DeletePortMapping", entry)[1]
    other = wanted | {"NewInternalClient": "192.168.7.77"}
    assert "<errorCode>606<" in soap(host, url, service, "AddPortMapping", other)[1]


def found_by_ssdp(host: LabHost) -> tuple[str, str]:
    """Where the gateway takes orders, and for which service."""
    service = "urn:schemas-upnp-org:service:WANIPConnection:1"
    with udp(host) as searching:
        headers = ("HOST: 239.255.255.250:1900", 'MAN: "ssdp:discover"', "MX: 1", f"ST: {service}")
        search = "\r\n".join(("M-SEARCH * HTTP/1.1", *headers, "\r\n"))
        searching.sendto(search.encode(), ("239.255.255.250", 1900))
        answer = searching.recv(2048).decode()
    location = next(line[10:] for line in answer.split("\r\n") if line.startswith("LOCATION: "))
    description = http(host, "GET", location)[1]
    assert service in description
    return location.rpartition("/")[0] + description.split("<controlURL>")[1].split("<")[0], service


def soap(
    host: LabHost, url: str, service: str, action: str, arguments: dict[str, str] | None = None
) -> tuple[int, str]:
    inside = "".join(f"<{name}>{value}</{name}>" for name, value in (arguments or {}).items())
    body = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>'
        f'<u:{action} xmlns:u="{service}">{inside}</u:{action}></s:Body></s:Envelope>'
    )
    return http(host, "POST", url, body, {"SOAPAction": f'"{service}#{action}"'})


def http(
    host: LabHost, method: str, url: str, body: str = "", headers: dict[str, str] | None = None
) -> tuple[int, str]:
    from http.client import HTTPConnection

    address, _, path = url.removeprefix("http://").partition("/")
    name, port = address.split(":")
    connection = HTTPConnection(name, int(port))
    connection.sock = dialled(host, name, int(port))
    try:
        connection.request(method, f"/{path}", body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_a_connection_whose_mapping_was_dropped_is_dead_and_a_new_one_works(lab: NatLab) -> None:
    a, p = lab.host("a"), lab.host("p")
    with listener(p, 7006) as listening, dialled(a, p.address, 7006) as old:
        accepted, _ = listening.accept()
        lab.drop_mappings("a")
        old.sendall(b"hello")
        accepted.sendall(b"hello")
        assert not comes(accepted, WAIT_S)
        assert not comes(old, WAIT_S)
        with dialled(a, p.address, 7006) as new:
            new.sendall(b"hello")
            assert listening.accept()[0].recv(5) == b"hello"
        accepted.close()
    with pytest.raises(UsageError, match="has no gateway"):
        lab.drop_mappings("p")


def test_a_partition_keeps_its_sides_apart_until_it_is_healed(lab: NatLab) -> None:
    p, q, a, b = (lab.host(name) for name in "pqab")
    with ExitStack() as opened:
        left, right = (opened.enter_context(udp(host, 7007)) for host in (p, q))
        inside, outside = (opened.enter_context(udp(host)) for host in (a, b))

        def arrives(sender: socket.socket, to: LabHost, receiver: socket.socket, within_s: float) -> bool:
            sender.sendto(b"hello", (to.address, 7007))
            return comes(receiver, within_s)

        lab.partition("ap", "q")
        assert arrives(inside, p, left, ALLOWED_S)
        assert not arrives(inside, q, right, WAIT_S)
        assert arrives(outside, q, right, ALLOWED_S)  # b is on no side
        lab.heal()
        assert arrives(inside, q, right, ALLOWED_S)


def test_a_site_goes_offline_without_a_word_and_comes_back_by_itself(lab: NatLab) -> None:
    a, p = lab.host("a"), lab.host("p")
    with udp(p, 7008) as receiver, udp(a) as sender:
        for went, comes_back in (
            (lambda: lab.offline("a", 0.4), None),
            (lambda: lab.offline("a"), lab.online),
        ):
            went()
            sender.sendto(b"hello", (p.address, 7008))
            assert not comes(receiver, WAIT_S)
            if comes_back is None:
                time.sleep(0.4)
            else:
                comes_back("a")
            sender.sendto(b"hello", (p.address, 7008))
            assert comes(receiver)


@pytest.mark.parametrize("name", ["a", "q", "v", "d"])
def test_a_host_without_its_interface_is_told_so_and_reaches_everybody_again_with_it(
    lab: NatLab, name: str
) -> None:
    host, family = lab.host(name), socket.AF_INET6 if name in "vd" else socket.AF_INET
    address = next(a for a in lab.host("p").addresses if (":" in a) == (name in "vd"))
    with udp(lab.host("p"), 7009, family) as receiver, udp(host, family=family) as sender:
        host.unplug()
        with pytest.raises(OSError, match="unreachable") as caught:
            sender.sendto(b"hello", (address, 7009))
        assert caught.value.errno == errno.ENETUNREACH
        host.plug_in()
        # A datagram may be lost while its neighbours find the host again.
        assert any(sender.sendto(b"hello", (address, 7009)) and comes(receiver) for _ in range(5))


def test_hosts_are_as_far_apart_as_their_links_together(nat_lab: type[NatLab]) -> None:
    """And a narrow link sends no faster than it can, and one that loses packets loses that many."""
    far, near = parse_sites("cone", LinkQuality(delay_ms=30)), parse_sites("cone,public")[1:]
    with nat_lab([*far, *near], seed=7) as lab, udp(lab.host("b"), 7010) as there, udp(lab.host("a")) as here:
        seen = seen_from(here, there, (lab.host("b").address, 7010))
        began = time.monotonic()
        there.sendto(b"ping", seen)
        here.sendto(here.recv(16), (lab.host("b").address, 7010))
        there.recv(16)
        assert 0.06 <= time.monotonic() - began < 2

        lab.shape("a", delay_ms=0, rate_mbit=4)
        with listener(lab.host("b"), 7011) as listening, dialled(lab.host("a"), "20.0.2.1", 7011) as sending:
            accepted, _ = listening.accept()
            began, size = time.monotonic(), 100_000
            sending.sendall(bytes(size))
            while size:
                size -= len(accepted.recv(1 << 16))
            accepted.close()
        assert 0.2 <= time.monotonic() - began < 4

        lab.shape("a", rate_mbit=0, loss=0.25)
        for _ in range(200):
            here.sendto(b"hello", (lab.host("b").address, 7010))
        arrived = 0
        while comes(there, WAIT_S):
            arrived += 1
        assert 120 < arrived < 180
