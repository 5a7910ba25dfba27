"""Every kind of network reaches every other one, by the way that there is."""

from __future__ import annotations

from collections import defaultdict

import pytest

from shoal.testing.natlab.lab import NatLab
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
