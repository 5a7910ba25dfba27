"""The middle of the internet in memory: when packets arrive where. And how sites are written."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest

from shoal.errors import ShoalError, UsageError
from shoal.testing.natlab import programs
from shoal.testing.natlab.backbone import BUFFER_S, Backbone
from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.sites import LinkQuality, Site, parse_sites

A, B, C = 0, 1, 2
ADDRESSES = {ipaddress.ip_address(f"20.0.0.{site}").packed: site for site in (A, B, C)}
ADDRESSES |= {ipaddress.ip_address(f"2a10:20::{site}").packed: site for site in (A, B, C)}


def packet(to: int, size: int = 1000, version: int = 4) -> bytes:
    address = next(a for a, site in ADDRESSES.items() if site == to and len(a) == {4: 4, 6: 16}[version])
    return (bytes([version << 4]) + bytes({4: 15, 6: 23}[version]) + address).ljust(size, b".")


def backbone(*links: LinkQuality) -> Backbone:
    given = (*links, *[LinkQuality()] * (3 - len(links)))
    return Backbone(ADDRESSES, dict(enumerate(given)), seed=1)


def played(middle: Backbone, until: float = 1e6) -> list[tuple[float, int]]:
    """When a packet arrived, and at which site, for all that are under way."""
    arrived: list[tuple[float, int]] = []
    while (due := middle.next_due) is not None and due <= until:
        arrived += [(round(due, 6), site) for site, _ in middle.give(due)]
    return arrived


@pytest.mark.parametrize("version", [4, 6])
def test_a_packet_takes_the_delays_of_both_links(version: int) -> None:
    middle = backbone(LinkQuality(delay_ms=10), LinkQuality(delay_ms=5))
    middle.take(1.0, A, packet(B, version=version))
    assert middle.give(1.0149) == []
    assert played(middle) == [(1.015, B)]
    assert middle.carried == {(A, B): 1000}


def test_a_link_with_a_rate_sends_one_packet_after_the_other_and_drops_what_it_cannot_hold_back() -> None:
    middle = backbone(LinkQuality(rate_mbit=0.8))  # 100 packets of 1000 bytes in a second
    for _ in range(100):
        middle.take(0.0, A, packet(B))
    arrived = [at for at, _ in played(middle)]
    assert arrived[:3] == [0.01, 0.02, 0.03]
    assert BUFFER_S <= arrived[-1] <= BUFFER_S + 0.02


def test_at_a_narrow_link_the_one_that_comes_first_goes_first_however_far_it_came() -> None:
    middle = backbone(LinkQuality(delay_ms=100), LinkQuality(), LinkQuality(rate_mbit=0.8))
    middle.take(0.0, A, packet(C))
    middle.take(0.05, B, packet(C))
    assert played(middle) == [(0.06, C), (0.11, C)]


def test_nothing_passes_between_the_sides_of_a_cut_nor_to_or_from_one_that_is_offline() -> None:
    middle = backbone()
    middle.set_cuts(frozenset({frozenset((A, B))}))
    for source, to in ((A, B), (B, A), (A, C), (C, B)):
        middle.take(0.0, source, packet(to))
    assert sorted(site for _, site in played(middle)) == [B, C]
    middle.set_cuts(frozenset())
    middle.set_offline(B, 2.0)
    for at in (1.0, 2.5):
        for source, to in ((A, B), (B, A)):
            middle.take(at, source, packet(to))
    assert sorted(played(middle)) == [(2.5, A), (2.5, B)]


def test_what_is_under_way_to_a_site_that_goes_offline_is_lost_and_a_new_shape_keeps_it_offline() -> None:
    middle = backbone(LinkQuality(delay_ms=100))
    middle.take(0.0, A, packet(B))
    middle.set_offline(B, 5.0)
    middle.shape(B, LinkQuality(delay_ms=1))
    assert played(middle) == []


def test_a_packet_to_nobody_is_lost() -> None:
    middle = backbone()
    middle.take(0.0, A, bytes([4 << 4]) + bytes(19))
    middle.take(0.0, A, bytes([6 << 4]) + bytes(39))
    assert middle.next_due is None


@pytest.mark.parametrize(
    ("text", "sites"),
    [
        ("cone", [("cone", ("a",))]),
        ("cone,sym*2, v6", [("cone", ("a",)), ("sym", ("b", "c")), ("v6", ("d",))]),
    ],
)
def test_sites_are_written_by_their_kinds(text: str, sites: Sequence[tuple[str, tuple[str, ...]]]) -> None:
    assert [(site.kind, site.hosts) for site in parse_sites(text)] == sites


@pytest.mark.parametrize("text", ["", "cone,", "cone sym", "nat", "public*2", "v6*2", "cone*0"])
def test_what_is_no_list_of_sites_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_sites(text)


@pytest.mark.parametrize("sites", [[], [Site("cone", ("a",)), Site("sym", ("a",))], parse_sites("cone") * 65])
def test_a_lab_needs_hosts_with_different_names_and_not_too_many(sites: list[Site]) -> None:
    with pytest.raises(UsageError):
        NatLab(sites)


@pytest.mark.parametrize("quality", [(-1, 0, 0), (0, -1, 0), (0, 0, 1.1), (float("nan"), 0, 0)])
def test_a_link_that_cannot_be_is_refused(quality: tuple[float, float, float]) -> None:
    with pytest.raises(UsageError):
        LinkQuality(*quality)


def test_without_its_programs_the_lab_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.os, "geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ShoalError, match="nftables") as caught:
        programs.check_programs()
    assert caught.value.next_command == "apt-get install conntrack iproute2 nftables util-linux"


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs.os, "geteuid", lambda: 1000)
    with pytest.raises(ShoalError, match="only root"):
        programs.check_programs()
