"""What a client owes: what came back, and of what it asked for beyond that a window at the most."""

from __future__ import annotations

from shoal.client.paying import work as module
from shoal.client.paying.terms import HopBill
from shoal.client.paying.work import HopWork, RingWork
from shoal.swarm.announcement import AskedPrice

PRICE = AskedPrice(10, 1, b"p" * 20, 1, b"c" * 20)


def test_a_result_counts_once_also_of_a_step_that_was_given_up():
    ring = RingWork()
    hop = HopWork(ring)
    ring.sent(1, 20)
    ring.sent(2, 1)
    ring.came_back(1)
    ring.came_back(1)
    ring.came_back(7)  # of a step that was never sent
    assert (hop.asked, hop.came) == (21, 20)


def test_a_hop_answers_for_its_time_alone_and_for_the_cache_that_was_filled_for_it():
    ring = RingWork()
    first = HopWork(ring)
    ring.sent(1, 20)
    ring.came_back(1)
    first.end()
    second = HopWork(ring, refilled=20)
    assert (second.asked, second.came) == (20, 0)
    ring.sent(2, 1)
    ring.came_back(2)
    assert (first.asked, first.came) == (20, 20)
    # A result has come through it, so its cache was filled.
    assert (second.asked, second.came) == (21, 21)


def test_no_more_steps_are_remembered_than_may_be_on_their_way(monkeypatch):
    monkeypatch.setattr(module, "MAX_UNANSWERED", 2)
    ring = RingWork()
    for number in (1, 2, 3):
        ring.sent(number, 1)
    for number in (1, 2, 3):
        ring.came_back(number)
    assert (ring.asked, ring.came) == (3, 2)


def test_a_hop_may_ask_for_what_it_was_sent_and_for_a_window_beyond_what_has_come():
    ring = RingWork()
    hop = HopWork(ring)
    bill = HopBill("node", PRICE, 3, hop, None)
    ring.sent(1, 20)
    assert bill.token_micro == 30
    assert bill.most_micro(100) == 100
    ring.came_back(1)
    assert bill.came_micro == bill.most_micro(100) == 600
    ring.sent(2, 1)
    assert bill.most_micro(100) == 630
