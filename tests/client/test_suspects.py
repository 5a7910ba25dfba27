"""Who has failed us is avoided for a while, longer each time, and is given another chance."""

from __future__ import annotations

from shoal.client.ring.suspects import LONGEST_S, Suspects
from shoal.types import PeerId

PEER = PeerId("a")


def test_a_peer_is_avoided_until_it_says_something_new():
    suspects = Suspects()
    suspects.add(PEER, 5, 100.0)
    assert suspects.holds(PEER, 5, 130.0, "words")
    assert not suspects.holds(PEER, 6, 130.0, "words")
    assert not suspects.holds(PEER, 5, 100.0 + LONGEST_S, "words")


def test_where_there_is_nobody_else_it_is_asked_again_sooner():
    suspects = Suspects()
    suspects.add(PEER, 5, 100.0)
    assert suspects.holds(PEER, 5, 100.5, "time")
    assert not suspects.holds(PEER, 5, 101.5, "time")


def test_each_failure_in_a_row_doubles_how_long():
    suspects = Suspects()
    for now in (100.0, 110.0, 120.0):
        suspects.add(PEER, 5, now)
    assert suspects.holds(PEER, 6, 123.5, "words")
    assert not suspects.holds(PEER, 6, 124.5, "words")


def test_what_has_worked_since_is_no_failure_in_a_row():
    """A machine that is restarted every minute, and answers in between, is not avoided for ever longer."""
    suspects = Suspects()
    for number, now in enumerate((100.0, 150.0, 200.0, 250.0, 300.0)):
        suspects.add(PEER, 5, now, steps=100 * number)
    assert suspects.holds(PEER, 5, 300.5, "silence")
    assert not suspects.holds(PEER, 5, 301.5, "silence")
    suspects.add(PEER, 5, 310.0, steps=404)
    assert suspects.holds(PEER, 5, 311.5, "silence")


def test_where_nobody_else_is_left_one_that_speaks_again_is_asked_before_its_time():
    """Machines that come back again and again are better than none; one that is silent is no machine."""
    suspects = Suspects()
    for now in (100.0, 110.0, 120.0, 130.0):
        suspects.add(PEER, 5, now)
    assert suspects.holds(PEER, 6, 131.0, "time")
    assert not suspects.holds(PEER, 6, 131.0, "silence")
    assert suspects.holds(PEER, 5, 131.0, "silence")


def test_one_failure_that_many_sessions_saw_counts_once():
    suspects = Suspects()
    for now in (100.0, 100.01, 100.02):
        suspects.add(PEER, 5, now)
    assert not suspects.holds(PEER, 6, 101.5, "words")


def test_what_is_remembered_is_bounded():
    suspects = Suspects()
    for number in range(3000):
        suspects.add(PeerId(str(number)), 1, 100.0)
    assert not suspects.holds(PeerId("0"), 1, 100.1, "words")
    assert suspects.holds(PeerId("2999"), 1, 100.1, "words")
