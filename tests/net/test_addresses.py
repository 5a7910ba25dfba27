"""What a peer announces of itself, and how addresses are written."""

from __future__ import annotations

import ipaddress

import pytest

from shoal.errors import UsageError
from shoal.net import addresses
from shoal.net.addresses import EVERYWHERE, announced, expand, listening_hosts, split_bootstrap, versions_of


def test_every_interface_is_announced_by_its_addresses():
    assert expand("127.0.0.1", 7) == ("/ip4/127.0.0.1/tcp/7",)
    assert expand("::1", 7) == ("/ip6/::1/tcp/7",)
    everywhere = expand("0.0.0.0", 7)
    assert everywhere
    assert all(a.startswith("/ip4/") and a.endswith("/tcp/7") and "0.0.0.0" not in a for a in everywhere)
    # A listener on :: does not take IPv4. A machine without IPv6 has nothing to announce there.
    assert all(a.startswith("/ip6/") and "/::/" not in a and "%" not in a for a in expand("::", 7))


def test_a_listener_everywhere_is_announced_in_both_ip_versions_and_leaves_room_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    many = {4: [f"192.168.{n}.2" for n in range(9)], 6: [f"2a10:20::{n}" for n in range(1, 10)]}

    def interfaces(version: int) -> set[object]:
        return {ipaddress.ip_address(address) for address in many[version]}

    monkeypatch.setattr(addresses, "_interfaces", interfaces)
    listening = [("0.0.0.0", 7), ("::", 8)]
    both = announced(listening)
    assert [versions_of([a]) for a in both] == [{6}] * 4 + [{4}] * 4
    assert {a.rpartition("/")[2] for a in both[:4]} == {"8"}
    many[6] = ["2a10:20::1", "::1", "fe80::1"]
    assert announced(listening)[0] == "/ip6/2a10:20::1/tcp/8"
    assert len(announced(listening)) == 8
    many[4], many[6] = ["127.0.0.1"], ["2a10:20::1"]
    assert announced(listening) == ("/ip6/2a10:20::1/tcp/8",)


def test_everywhere_is_each_ip_version_that_this_machine_has() -> None:
    assert listening_hosts("10.0.0.1") == ("10.0.0.1",)
    assert listening_hosts(EVERYWHERE)[0] == "0.0.0.0"
    assert set(expand(EVERYWHERE, 7)) <= {*expand("0.0.0.0", 7), *expand("::", 7)}


def test_a_bootstrap_address_names_its_peer():
    assert split_bootstrap("/ip4/192.0.2.1/tcp/1/p2p/12D3") == ("/ip4/192.0.2.1/tcp/1", "12D3")
    for text in ("", "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/1/p2p/", "x/p2p/y", "/a/p2p/b/c"):
        with pytest.raises(UsageError):
            split_bootstrap(text)
