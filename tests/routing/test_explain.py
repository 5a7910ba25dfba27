"""A route says what each hop costs, and what there would be without it."""

from __future__ import annotations

import pytest

from shoal.routing.explain import explain_route
from shoal.routing.prices import price
from shoal.routing.route import who_may
from shoal.routing.shortest_path import cheapest
from shoal.types import PeerId, Span
from tests.routing.test_route import offer

OFFERS = [
    offer("a", 0, 15, step_s=0.015, rtt_s=0.004, rtts_s={PeerId("b"): 0.002}),
    offer("b", 15, 30, step_s=0.03, rtt_s=0.006, wait_s=0.005),
    offer("c", 15, 30, rtt_s=0.3),
]


def test_the_costs_of_the_stages_add_up_to_what_was_minimised():
    choice = explain_route(OFFERS, 30, 1)
    path = cheapest(price(OFFERS, "latency", None), who_may(OFFERS, Span(0, 30)))
    assert path is not None
    assert choice.seconds == pytest.approx(path.seconds)
    assert [(s.peer, s.span) for s in choice.stages] == [("a", Span(0, 15)), ("b", Span(15, 30))]
    assert choice.stages[1].way_s == pytest.approx(0.001)
    assert choice.stages[1].waiting_s == pytest.approx(0.006)


def test_without_a_peer_the_next_best_route_is_told_or_why_there_is_none():
    without_a, without_b = explain_route(OFFERS, 30, 1).alternatives
    assert without_a.stages == ()
    assert "0:15" in without_a.why_none
    assert without_b.stages == (("a", Span(0, 15)), ("c", Span(15, 30)))
    assert without_b.seconds > explain_route(OFFERS, 30, 1).seconds


def test_whatever_the_objective_it_is_told_how_long_a_step_takes():
    choice = explain_route(OFFERS, 30, 1, objective="cost")
    assert choice.objective == "cost"
    assert choice.seconds < 1
