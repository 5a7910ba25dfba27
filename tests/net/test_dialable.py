"""Which announced addresses a peer is willing to dial (docs/hostile.md 17)."""

from __future__ import annotations

import ipaddress
import socket
from collections import namedtuple

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.net.addresses import host_and_port
from shoal.net.dialable import LocalNetworks, around

Interface = namedtuple("Interface", "family address netmask")
LOOPBACK = ("/ip4/127.0.0.1/tcp/4001",)
HOME = ("/ip4/192.168.1.7/tcp/4001",)
CLOUD = ("/ip4/10.128.0.2/tcp/4001",)
OVERLAY = ("/ip4/100.101.1.1/tcp/4001",)
PUBLIC = ("/ip4/8.8.4.4/tcp/4001",)
NOWHERE = [
    "/ip4/0.0.0.0/tcp/1",
    "/ip6/::/tcp/1",
    "/ip4/224.0.0.251/tcp/1",
    "/ip6/ff02::1/tcp/1",
    "/ip4/255.255.255.255/tcp/1",
    "/ip4/240.0.0.1/tcp/1",
    "/ip4/169.254.169.254/tcp/80",
    "/ip4/169.254.1.1/tcp/80",
    "/ip4/100.100.100.200/tcp/80",
    "/ip6/fd00:ec2::254/tcp/80",
    "/ip6/fd00:ec2::254%1/tcp/80",
    "/ip6/2606:4700::1%1/tcp/1",
    "/ip6/2606:4700::1%" + "a" * 70 + "/tcp/1",
    "/ip6/fe80::1/tcp/1",
    "/ip6/fec0::1/tcp/1",
    "/ip6/::ffff:169.254.169.254/tcp/80",
    "/ip6/64:ff9b::a9fe:a9fe/tcp/80",
    "/ip6/2002:a9fe:a9fe::1/tcp/80",
    "/ip6/::169.254.169.254/tcp/80",
    "/dns4/metadata.google.internal/tcp/80",
    "/dns/localhost/tcp/1",
    "/ip4/8.8.8.8/udp/53",
    "/ip4/8.8.8.8/tcp/0",
    "/ip4/8.8.8.8/tcp/65536",
    "/ip4/8.8.8.8/tcp/١",
    "/ip4/8.8.8.8/tcp/1/ws",
    "/ip4/08.8.8.8/tcp/1",
    "/unix/tmp/x",
    "",
    "/",
    "ip4/8.8.8.8/tcp/1",
]


@pytest.fixture(autouse=True)
def interfaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a home network, a cloud's lone address, an overlay network and a public address."""
    v4 = [
        ("127.0.0.1", "255.0.0.0"),
        ("192.168.1.7", "255.255.255.0"),
        ("10.128.0.2", "255.255.255.255"),
        ("100.101.1.1", "255.255.255.255"),
        ("8.8.4.4", "255.255.255.0"),
    ]
    found = [Interface(socket.AF_INET, address, mask) for address, mask in v4]
    found.append(Interface(socket.AF_INET6, "fd12:3456::7", "ffff:ffff:ffff:ffff::"))
    found.append(Interface(socket.AF_INET6, "fe80::1%eth0", "ffff:ffff:ffff:ffff::"))
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: {"all": found})


@pytest.mark.parametrize(
    ("relay", "told", "met"),
    [
        ("1.1.1.1", ["8.8.8.8", "9.9.9.9", "8.8.8.8"], ["8.8.8.8", "8.8.8.8"]),
        ("1.1.1.1", ["192.168.1.9"], []),
        ("1.1.1.1", ["127.0.0.1"], []),
        ("192.168.1.3", ["192.168.1.9", "192.168.1.10"], ["192.168.1.9"]),
        ("192.168.1.3", ["127.0.0.1"], []),
        ("192.168.1.3", ["8.8.8.8"], ["8.8.8.8"]),
        ("127.0.0.1", ["127.0.0.1"], ["127.0.0.1"]),
        ("127.0.0.1", ["192.168.1.9"], []),
        ("relay.example", ["192.168.1.9", "8.8.8.8"], ["8.8.8.8"]),
    ],
)
def test_a_relay_sends_us_to_one_host_and_to_private_ones_on_its_own_network_alone(
    relay: str, told: list[str], met: list[str]
) -> None:
    nearby = around((*HOME, *LOOPBACK), trusting=True)
    found = nearby.told_by(f"/ip4/{relay}/tcp/4001", [f"/ip4/{host}/tcp/1" for host in told])
    assert found == tuple(f"/ip4/{host}/tcp/1" for host in met)


def test_a_relay_names_one_host_of_each_ip_version() -> None:
    told = ["/ip6/2a10:20::1/tcp/1", "/ip4/8.8.8.8/tcp/1", "/ip6/2a10:20::2/tcp/1", "/ip4/8.8.4.4/tcp/1"]
    assert around(HOME, trusting=True).told_by("/ip4/20.0.1.1/tcp/1", told) == tuple(told[:2])


@pytest.mark.parametrize("address", NOWHERE)
@pytest.mark.parametrize("own", [LOOPBACK, HOME, CLOUD, OVERLAY, PUBLIC, ()])
@pytest.mark.parametrize("trusting", [True, False])
def test_never_dialled(address: str, own: tuple[str, ...], trusting: bool) -> None:
    assert not around(own, trusting=trusting).dialable(address)


@pytest.mark.parametrize(
    ("address", "own", "public_swarm", "private_swarm"),
    [
        ("/ip4/8.8.8.8/tcp/4001", PUBLIC, True, True),
        ("/ip4/8.8.8.8/tcp/4001", HOME, True, True),
        ("/ip6/2001:4860::1/tcp/4001", PUBLIC, True, True),
        ("/ip4/127.0.0.1/tcp/4001", LOOPBACK, True, True),
        ("/ip6/::1/tcp/4001", LOOPBACK, True, True),
        ("/ip4/127.0.0.1/tcp/4001", HOME, False, False),
        ("/ip6/::ffff:127.0.0.1/tcp/4001", HOME, False, False),
        ("/ip4/127.0.0.1/tcp/4001", PUBLIC, False, False),
        ("/ip4/192.168.1.9/tcp/4001", HOME, True, True),
        ("/ip4/192.168.2.9/tcp/4001", HOME, False, True),  # a routed neighbour: invited members alone
        ("/ip4/10.0.0.9/tcp/4001", HOME, False, False),
        ("/ip4/10.200.0.9/tcp/4001", CLOUD, True, True),  # a /32 tells nothing of the network behind it
        ("/ip4/100.70.0.9/tcp/4001", OVERLAY, True, True),
        ("/ip4/100.70.0.9/tcp/4001", HOME, False, False),
        ("/ip4/192.168.1.9/tcp/4001", PUBLIC, False, False),
        ("/ip4/192.168.1.9/tcp/4001", (), False, False),
        ("/ip6/fd12:3456::9/tcp/4001", ("/ip6/fd12:3456::7/tcp/1",), True, True),
        ("/ip6/fd99::9/tcp/4001", ("/ip6/fd12:3456::7/tcp/1",), False, True),
    ],
)
def test_loopback_and_private_hosts_make_sense_only_to_those_who_are_there(
    address: str, own: tuple[str, ...], public_swarm: bool, private_swarm: bool
) -> None:
    assert around(own, trusting=False).dialable(address) is public_swarm
    assert around(own, trusting=True).dialable(address) is private_swarm


def test_who_joined_through_this_machine_may_dial_it() -> None:
    local = around(HOME, trusting=False).joined_through("/ip4/127.0.0.1/tcp/4001")
    assert local.dialable("/ip4/127.0.0.1/tcp/9")
    assert not around(HOME, trusting=False).joined_through("/ip4/8.8.8.8/tcp/1").dialable(LOOPBACK[0])


@given(st.text(max_size=60))
def test_any_text_is_judged(text: str) -> None:
    assert LocalNetworks((ipaddress.ip_network("192.168.1.0/24"),)).dialable(text) in (True, False)
    host_and_port(text)


def test_those_that_may_be_dialled_keep_their_order() -> None:
    good = ("/ip4/192.168.1.9/tcp/1", "/ip4/8.8.8.8/tcp/1")
    assert around(HOME, trusting=False).fit([good[0], *NOWHERE, good[1]]) == good
