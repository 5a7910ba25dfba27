"""A hop that has become slow is replaced when that pays, and not before."""

from __future__ import annotations

from dataclasses import replace

from shoal.routing.replace import StepTimes, worth_replacing
from shoal.types import PeerId
from tests.routing.test_repair import ROUTE
from tests.routing.test_route import offer, stages

SLOW = StepTimes(step_s=0.5, promised_s=0.02)
OFFERS = [offer("b", 10, 20, step_s=0.02), offer("spare", 10, 20, step_s=0.02)]


def verdict(seen=SLOW, offers=OFFERS, *, cached=100, remaining=200, **options):
    return worth_replacing(offers, ROUTE, 1, seen, 512, cached=cached, remaining=remaining, **options)


def big(offers):
    return [replace(o, tokens_free=4096) for o in offers]


def test_a_hop_that_stays_slow_is_replaced_and_it_is_said_what_that_saves():
    found = verdict()
    assert found.repair is not None
    first, last, new = found.repair
    assert (first, last, stages(new)) == (1, 1, [("spare", 10, 20)])
    assert "saves 96.0 s" in found.why


def test_a_hop_that_is_hardly_slower_than_another_is_kept():
    assert verdict(StepTimes(0.021, 0.02)).repair is None


def test_a_few_tokens_before_the_end_it_is_not_worth_it():
    found = verdict(remaining=1)
    assert found.repair is None
    assert "too little" in found.why


def test_a_long_cache_is_dear_to_fill_again():
    assert verdict(StepTimes(0.05, 0.02), big(OFFERS), cached=4000, remaining=400).repair is None
    assert verdict(StepTimes(0.05, 0.02), big(OFFERS), cached=100, remaining=400).repair is not None


def test_without_a_replica_it_is_kept_and_the_blocks_are_named():
    found = verdict(offers=OFFERS[:1])
    assert found.repair is None
    assert "10:20" in found.why


def test_a_replica_that_nobody_has_measured_is_no_reason():
    assert verdict(offers=[OFFERS[0], offer("new", 10, 20)]).repair is None


def test_the_replica_is_not_replaced_in_turn():
    """What took its place is as fast as promised: the next look keeps it."""
    found = verdict()
    assert found.repair is not None
    route = [ROUTE[0], *found.repair[2], ROUTE[2]]
    again = worth_replacing(
        OFFERS, route, 1, StepTimes(0.021, 0.02), 512, cached=150, remaining=150, avoid={PeerId("b")}
    )
    assert again.repair is None
