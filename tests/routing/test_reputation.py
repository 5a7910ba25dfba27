"""What peers announce costs them nothing; what they have done here counts."""

from __future__ import annotations

import pytest

from shoal.errors import NoCoverage
from shoal.routing.prices import Candidate
from shoal.routing.reputation import (
    HALF_LIFE_S,
    LIMIT,
    REFUSAL,
    WHOLE_FAULT,
    Reputation,
)
from shoal.routing.route import choose_route
from shoal.types import PeerId, Span

A, B, LIAR, NEW = PeerId("a"), PeerId("b"), PeerId("liar"), PeerId("new")
ROOM = 1 << 20


def offer(peer, start, end, *, block_s=0.002, **more):
    return Candidate(peer, Span(start, end), ROOM, block_s * (end - start), **more)


def honest():
    return [offer(A, 0, 3, rtt_s=0.01), offer(B, 3, 6, rtt_s=0.01)]


def proven(steps=64, *peers):
    reputation = Reputation()
    for _ in range(steps):
        reputation.answered(peers or (A, B))
    return reputation


def chosen(reputation, candidates, *, now=0.0, trial=False, **more):
    route = choose_route(reputation.believed(candidates, now, trial=trial), 6, 100, **more)
    return [stage.peer for stage in route]


TOO_GOOD = {
    "speed": offer(LIAR, 0, 6, block_s=1e-9),
    "nearness": offer(LIAR, 0, 6, block_s=0.002, rtt_s=0.0),
    "room": Candidate(LIAR, Span(0, 6), 1 << 40, 1e-9, tokens=1 << 40),
    "idleness": Candidate(LIAR, Span(0, 6), ROOM, 0.0),
}


@pytest.mark.parametrize("what", TOO_GOOD)
def test_no_announcement_comes_before_peers_that_have_answered(what):
    assert chosen(proven(), [*honest(), TOO_GOOD[what]]) == [A, B]


def test_nor_do_three_announcements_where_sessions_were_too_short_to_be_timed():
    honest = [offer(A, 0, 3, block_s=0.001, rtt_s=0.001), offer(B, 3, 6, block_s=0.001, rtt_s=0.001)]
    crowd = [offer(PeerId(f"liar {number}"), 0, 6, block_s=1e-9, rtt_s=0.0) for number in range(3)]
    assert chosen(proven(12), [*honest, *crowd]) == [A, B]


def test_what_a_newcomer_announces_is_all_there_is_where_nobody_else_covers():
    assert chosen(proven(), [offer(NEW, 0, 6)]) == [NEW]


def test_a_session_that_is_a_trial_takes_newcomers_at_their_word():
    assert chosen(proven(), [*honest(), offer(NEW, 0, 6, rtt_s=0.01)], trial=True) == [NEW]


def test_a_newcomer_that_answers_is_trusted_as_the_others_are_after_one_answer():
    reputation = proven()
    assert reputation.trust(NEW, 0.0) == 0.25
    for _ in range(64):
        reputation.answered([NEW])
    assert reputation.trust(NEW, 0.0) == reputation.trust(A, 0.0) > 0.95
    assert chosen(reputation, [*honest(), offer(NEW, 0, 6, rtt_s=0.01)]) == [NEW]


def test_where_nobody_has_answered_all_are_believed_alike_and_nobody_is_much_faster_than_the_usual():
    [first, second] = Reputation().believed([offer(A, 0, 6), offer(LIAR, 0, 6, block_s=1e-9)], 0.0)
    assert first.trust == second.trust
    assert second.step_s > first.step_s / 10


def test_a_refusal_makes_a_newcomer_the_last_resort_and_is_forgiven():
    reputation = Reputation()
    reputation.failed(LIAR, 0.0, REFUSAL)
    offers = [*honest(), offer(LIAR, 0, 6)]
    assert chosen(reputation, offers) == [A, B]
    assert chosen(reputation, offers, now=1.0, trial=True) == [A, B]
    assert chosen(reputation, [offer(LIAR, 0, 6)], now=1.0) == [LIAR]
    assert reputation.trust(LIAR, 20 * HALF_LIFE_S) == pytest.approx(0.25, abs=0.01)


def test_five_that_refuse_stand_behind_honest_newcomers_from_then_on():
    reputation = Reputation()
    liars = [offer(PeerId(f"liar{i}"), 0, 6, block_s=1e-9) for i in range(5)]
    for liar in liars:
        reputation.failed(liar.peer, 0.0, REFUSAL)
    assert chosen(reputation, [*liars, *honest()], now=5.0) == [A, B]


def test_of_two_at_odds_the_one_that_has_proven_itself_goes_not():
    reputation = proven(64, A)
    assert reputation.to_blame([A, NEW], 0.0) == [NEW]
    assert reputation.to_blame([NEW, A], 0.0) == [NEW]


def test_of_two_newcomers_at_odds_both_may_be_the_liar_until_one_is_at_odds_again():
    reputation = Reputation()
    assert reputation.to_blame([LIAR, NEW], 0.0) == [LIAR, NEW]
    reputation.failed(LIAR, 0.0, WHOLE_FAULT)
    assert reputation.to_blame([LIAR, NEW], 0.0) == [LIAR]


def test_a_proven_peer_outlives_one_fault_and_not_many():
    reputation = proven(1000, A)
    reputation.failed(A, 0.0)
    assert reputation.trust(A, 0.0) > 0.75
    for _ in range(12):
        reputation.failed(A, 0.0)
    assert reputation.trust(A, 0.0) < 0.25


def test_a_peer_that_was_seen_to_be_slow_is_not_believed_to_be_quick():
    reputation = proven()
    reputation.paced(A, 0.05)
    [slow] = reputation.believed([offer(A, 0, 3, block_s=0.001)], 0.0)
    assert slow.step_s == pytest.approx(0.15)


def test_a_peer_that_says_that_it_has_become_slower_is_believed():
    reputation = proven()
    reputation.paced(A, 0.001)
    [slow] = reputation.believed([offer(A, 0, 3, block_s=0.05)], 0.0)
    assert slow.step_s == pytest.approx(0.15)


def test_one_slow_session_of_several_is_not_held_against_a_peer():
    reputation = proven()
    for block_s in (0.002, 0.5, 0.5):
        reputation.paced(A, block_s)
    [one] = reputation.believed([offer(A, 0, 3)], 0.0)
    assert one.step_s == pytest.approx(0.006)


def test_who_is_not_in_the_swarm_any_more_is_no_candidate_however_good_its_name():
    with pytest.raises(NoCoverage):
        choose_route(proven().believed(honest()[:1], 0.0), 6, 100)


def test_the_peers_that_are_remembered_are_bounded_and_proven_ones_are_remembered_longest():
    reputation = proven(64, A)
    for number in range(LIMIT):
        reputation.failed(PeerId(f"sybil{number}"), 0.0, REFUSAL)
    assert reputation.proven(A)
    assert len(reputation._records) == LIMIT
