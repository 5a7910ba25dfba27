"""Where a peer is reached over iroh: what is announced, what of it is dialled, what older releases read."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from shoal.errors import UsageError
from shoal.net.addresses import host_and_port
from shoal.net.dialable import LocalNetworks
from shoal.net.reach.iroh_addresses import IrohTarget, iroh_addresses, iroh_target, relay_address
from shoal.net.reach.ways import direct_targets, relays_of, router_host
from shoal.types import PeerAddress, PeerId

URL = "https://relay.example.org"
RELAY = "/dns/relay.example.org/tcp/443/https/iroh"
OURS = {RELAY: URL}
PUBLIC, PRIVATE = "/ip4/9.9.9.9/udp/4002/iroh", "/ip4/192.168.7.2/udp/4002/iroh"
HOME = LocalNetworks((ip_network("192.168.7.0/24"),), False, (ip_network("192.168.7.0/24"),))
AWAY = LocalNetworks()


def at(*direct: str) -> PeerAddress:
    return PeerAddress(PeerId("peer"), (), direct)


def hosts(address: PeerAddress, nearby: LocalNetworks) -> tuple[str, ...]:
    target = iroh_target(address, nearby, None, OURS)
    return target.hosts if target else ()


def test_public_addresses_are_announced_first_and_loopback_only_alone():
    sockets = ["127.0.0.1:7", "192.168.7.2:7", "9.9.9.9:7", "[2a10::9]:7", "nonsense"]
    assert iroh_addresses(sockets, None, {}) == (
        "/ip6/2a10::9/udp/7/iroh",
        "/ip4/9.9.9.9/udp/7/iroh",
        "/ip4/192.168.7.2/udp/7/iroh",
    )
    assert iroh_addresses(["127.0.0.1:7"], None, {}) == ("/ip4/127.0.0.1/udp/7/iroh",)
    assert len(iroh_addresses([f"9.9.9.{n}:7" for n in range(9)], None, {})) == 4


def test_a_relay_is_announced_as_its_user_named_it_and_no_other_is():
    assert iroh_addresses([], URL + "/", OURS) == (RELAY,)
    assert iroh_addresses([], "https://relay.n0.example/", OURS) == ()


def test_udp_addresses_are_dialled_by_the_rule_of_all_addresses():
    assert hosts(at(PUBLIC, PRIVATE), HOME) == ("9.9.9.9:4002", "192.168.7.2:4002")
    assert hosts(at(PUBLIC, PRIVATE), AWAY) == ("9.9.9.9:4002",)
    assert hosts(at("/ip6/2a10:20::1/udp/7/iroh"), AWAY) == ("[2a10:20::1]:7",)
    for nonsense in (
        "/ip4/127.0.0.1/udp/1/iroh",
        "/ip4/169.254.169.254/udp/80/iroh",
        "/ip4/9.9.9.9/udp/0/iroh",
        "/ip4/9.9.9.9/udp/99999/iroh",
        "/ip4/9.9.9.9/udp/7/iroh/x",
        "/dns/a.example/udp/7/iroh",
        "/ip4/a.example/udp/7/iroh",
        "/ip4//udp/7/iroh",
    ):
        assert iroh_target(at(nonsense), HOME, None, OURS) is None
    assert len(hosts(at(*[f"/ip4/9.9.9.{n}/udp/7/iroh" for n in range(99)]), AWAY)) == 4


def test_a_peers_relay_is_used_where_our_user_named_it_too_and_no_server_of_a_peers_is():
    assert iroh_target(at(RELAY), AWAY, None, OURS) == IrohTarget((), URL)
    assert iroh_target(at(RELAY), AWAY, None, {}) is None
    assert iroh_target(at("/dns/evil.example/tcp/443/https/iroh"), AWAY, None, OURS) is None


def test_what_does_not_know_iroh_passes_over_its_addresses():
    address = at(PUBLIC, PRIVATE, RELAY)
    assert direct_targets(address, HOME, None) == []
    assert relays_of(address) == []
    assert router_host(address.direct) is None
    assert [host_and_port(a) for a in address.direct] == [None, None, None]


@pytest.mark.parametrize(
    ("url", "announced"),
    [
        (URL, RELAY),
        ("https://Relay.Example.org:443/", RELAY),
        ("http://192.0.2.1:3340", "/ip4/192.0.2.1/tcp/3340/http/iroh"),
        ("https://[2001:db8::1]:8443", "/ip6/2001:db8::1/tcp/8443/https/iroh"),
    ],
)
def test_a_relay_has_one_spelling(url: str, announced: str):
    assert relay_address(url) == announced


@pytest.mark.parametrize(
    "url",
    [
        "relay.example.org",
        "ftp://relay.example.org",
        "https://",
        "https://relay.example.org/path",
        "https://user:secret@relay.example.org",
        "https://relay.example.org?x=1",
        "https://relay.example.org:0",
        "https://relay.example.org:99999",
        "https://[2001:db8::1",
        "https://a b",
    ],
)
def test_what_is_no_relays_url_is_refused(url: str):
    with pytest.raises(UsageError, match="iroh_relay"):
        relay_address(url)
