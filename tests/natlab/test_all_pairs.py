"""Every kind of network reaches every other one, by the way that there is."""

from __future__ import annotations

import secrets
from collections import defaultdict
from functools import partial

import pytest

from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.lab_peer import LabPeer
from shoal.testing.natlab.sites import LinkQuality, parse_sites
from shoal.testing.natlab.ways import measure_ways, ways_table

pytestmark = [pytest.mark.swarm, pytest.mark.alone]


def test_every_kind_of_network_reaches_every_other(nat_lab: type[NatLab]) -> None:
    sites = parse_sites("public,public,cone,dual,sym,v6", LinkQuality(delay_ms=5))
    report = measure_ways(sites, 0, lambda *_: None)
    assert report.complete, [pair.error for pair in report.pairs]
    found: dict[tuple[str, str], set[str]] = defaultdict(set)
    for pair in report.pairs:
        found[pair.networks].add(pair.way)
    # IPv4-only and IPv6-only have nothing but a relay that has both.
    for networks in (("cone", "v6"), ("v6", "cone"), ("sym", "v6"), ("v6", "sym"), ("sym", "cone")):
        assert found[networks] == {"relayed"}, networks
    for kind in ("cone", "dual", "sym", "v6"):
        assert found[kind, "public"] == {"public"}
        assert found["public", kind] <= {"public", "reversed", "relayed"}
    # A busy machine may miss a meeting, and then a circuit is taken.
    ways = [pair.way for pair in report.pairs]
    assert ways.count("punched") >= 1
    assert ways.count("reversed") >= 2
    assert set(report.joined_s) == {"c", "d", "e"}
    assert ways_table(report)


def test_a_machine_whose_address_is_on_no_interface_is_public_and_a_relay(nat_lab: type[NatLab]) -> None:
    """Nobody else is public here: a home joins through it, and holds its place there."""
    secret = secrets.token_bytes(32)
    with (
        nat_lab(parse_sites("static,cone")) as lab,
        LabPeer(lab.host("a"), secret) as rented,
        LabPeer(lab.host("b"), secret) as home,
    ):
        home.join([rented])
        assert rented.network.reach().public
        assert home.network.reach().relays == (rented.network.peer,)
        for source, other, way in ((home, rented, "mapped"), (rented, home, "reversed")):
            pipe = source.call(partial(source.network.open_pipe, other.network.address, deadline_s=10))
            source.call(pipe.aclose)
            assert pipe.way == way
