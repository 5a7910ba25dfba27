"""What guesses, what decides, and what they go by: each by itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.client.speculation.acceptance import Acceptance
from shoal.client.speculation.controller import OFF, Snapshot, WindowPlan, choose_plan, tokens_per_s
from shoal.client.speculation.costs import StepCosts
from shoal.client.speculation.drafters import INDEXED, LONGEST, Guess, NgramDrafter, longest_match
from shoal.client.speculation.gain import REST, TRIAL, Gain
from shoal.wire.messages import HopTime


async def guessed(text, ahead=(), count=4):
    drafter = NgramDrafter()
    drafter.learn(text)
    return [guess.token for guess in await drafter.guess(ahead, count)]


# ---- what guesses ----


async def test_what_followed_the_last_tokens_before_is_guessed_again() -> None:
    assert await guessed([1, 2, 3, 4, 5, 6, 1, 2]) == [3, 4, 5, 6]


async def test_one_token_alone_is_followed_by_anything() -> None:
    assert await guessed([1, 2, 3, 4, 9, 2]) == []


async def test_a_longer_match_counts_more_and_of_equal_ones_the_newest() -> None:
    assert await guessed([9, 1, 2, 7, 1, 2, 8, 9, 1, 2], count=1) == [7]
    assert await guessed([5, 1, 2, 7, 6, 1, 2, 8, 4, 1, 2], count=1) == [8]


async def test_what_was_guessed_before_is_gone_on_from() -> None:
    assert await guessed([1, 2, 3, 4, 5, 6, 1, 2], ahead=[3, 4], count=2) == [5, 6]


async def test_a_text_that_repeats_itself_is_guessed_to_go_on_so() -> None:
    assert await guessed([1, 2, 3, 1, 2, 3, 1, 2], count=7) == [3, 1, 2, 3, 1, 2, 3]


async def test_where_a_word_was_changed_the_place_is_followed_on_for_a_while() -> None:
    drafter = NgramDrafter()
    drafter.learn([1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2])
    assert [guess.token for guess in await drafter.guess((), 3)] == [3, 4, 5]
    drafter.learn([3, 44])  # it was 4 before
    assert await drafter.guess((), 2) == [Guess(5, "resumed-0"), Guess(6, "resumed-1")]
    drafter.learn([50, 60, 70, 80])
    assert await drafter.guess((), 2) == []


async def test_a_guess_says_how_long_the_match_was() -> None:
    drafter = NgramDrafter()
    drafter.learn([*range(20), 99, *range(3)])
    assert [guess.source for guess in await drafter.guess((), 3)] == ["ngram-3", "ngram-4", "ngram-5"]
    drafter.learn(range(3, 15))
    assert {guess.source for guess in await drafter.guess((), 3)} == {f"ngram-{LONGEST}"}


async def test_the_newest_of_a_long_text_are_looked_through_and_no_more_are_kept() -> None:
    drafter = NgramDrafter()
    for start in range(0, 10 * INDEXED, 1000):
        drafter.learn(range(start, start + 1000))
    assert len(drafter._tokens) < 3 * INDEXED
    drafter.learn([10 * INDEXED - 500, 10 * INDEXED - 499])
    assert [guess.token for guess in await drafter.guess((), 1)] == [10 * INDEXED - 498]


@given(st.lists(st.integers(0, 2), max_size=40))
def test_the_longest_match_is_that_of_a_plain_search(text: list[int]) -> None:
    best = (0, 0)
    for follows in range(2, len(text)):
        matched = 0
        while (
            matched < min(follows, LONGEST) and text[follows - matched - 1] == text[len(text) - matched - 1]
        ):
            matched += 1
        if matched >= max(2, best[1]):
            best = (follows, matched)
    found = longest_match(np.array(text, np.int64))
    assert found[1] == best[1] or len(text) > 18  # in such a text not every place is compared
    if found[1]:
        start, matched = found
        assert text[start - matched : start] == text[len(text) - matched :]


# ---- how often it is right ----


def test_a_source_is_trusted_by_how_often_it_was_right_lately() -> None:
    seen = Acceptance()
    unknown = seen.likely("a")
    assert 0.2 < unknown < 0.5
    for _ in range(100):
        seen.note("a", True)
        seen.note("b", False)
    assert seen.likely("a") > 0.9
    assert seen.likely("b") < 0.05
    assert seen.likely("c") == unknown
    for _ in range(40):
        seen.note("a", False)
    assert seen.likely("a") < 0.35


# ---- what is decided ----

HOME = Snapshot(
    acceptance=0.8,
    ways_s=0.2,
    step_s=0.03,
    slowest_s=0.01,
    row_s=0.006,
    waiting_s=0.0,
    own_s=0.001,
    draft_s=0.0,
    rows=8,
)
"""Three hops, 50 ms a link, 10 ms a step."""
LOCAL = replace(HOME, ways_s=0.001)


def test_the_likelier_a_guess_the_more_are_sent_and_the_faster_it_is() -> None:
    plans = [choose_plan(replace(HOME, acceptance=right)) for right in (0.0, 0.3, 0.6, 0.9, 0.98)]
    assert plans[0] == OFF
    ahead = [plan.window * plan.depth for plan in plans]
    assert ahead == sorted(ahead)
    assert plans[-1].depth > 4
    gains = [tokens_per_s(HOME, plan) * HOME.plain_s for plan in (WindowPlan(1, 1), WindowPlan(3, 4))]
    assert 1.5 < gains[0] < 2
    assert 3 < gains[1] < 5


def test_on_one_machine_only_what_is_nearly_certain_pays() -> None:
    assert choose_plan(replace(LOCAL, acceptance=0.15)) == OFF
    assert choose_plan(replace(LOCAL, acceptance=0.9)).window


def test_a_drafter_that_takes_longer_than_the_ring_is_of_no_use() -> None:
    assert choose_plan(replace(HOME, draft_s=0.3)) == OFF
    assert choose_plan(replace(HOME, draft_s=0.005)).window


def test_where_others_wait_rows_are_not_for_free() -> None:
    busy = replace(HOME, ways_s=0.01, acceptance=0.5, waiting_s=0.2)
    free = replace(busy, waiting_s=0.0)
    assert (
        choose_plan(busy).window * choose_plan(busy).depth
        <= choose_plan(free).window * choose_plan(free).depth
    )
    assert (
        tokens_per_s(busy, WindowPlan(7, 8)) * busy.plain_s
        < tokens_per_s(free, WindowPlan(7, 8)) * free.plain_s
    )


def test_with_one_row_a_step_guesses_are_steps_of_their_own() -> None:
    plan = choose_plan(replace(HOME, rows=1))
    assert plan.window == 1
    assert plan.depth > 1


@given(
    st.floats(0, 1), st.floats(0, 3), st.floats(0, 1), st.floats(0, 0.2), st.floats(0, 2), st.integers(1, 8)
)
@example(0.0, 0.0, 5e-324, 0.0, 1.0, 1)
def test_whatever_was_measured_there_is_a_plan(right, ways_s, step_s, row_s, waiting_s, rows) -> None:
    seen = Snapshot(
        acceptance=right,
        ways_s=ways_s,
        step_s=step_s,
        slowest_s=step_s / 2,
        row_s=row_s,
        waiting_s=waiting_s,
        own_s=0.0,
        draft_s=0.0,
        rows=rows,
    )
    plan = choose_plan(seen)
    assert plan.window >= 0 < plan.depth
    if right == 0:
        assert plan == OFF


# ---- what it goes by ----


def times(*compute_ms: float, waiting_ms: float = 0.0) -> list[HopTime]:
    return [HopTime(hop, round(1e3 * ms), round(1e3 * waiting_ms)) for hop, ms in enumerate(compute_ms)]


def test_costs_are_told_by_the_steps_themselves() -> None:
    costs = StepCosts()
    assert not costs.known
    for _ in range(50):
        costs.note_step(1, 0.250, times(10, 20, 10, waiting_ms=1), alone=True)
        costs.note_step(5, 0.280, times(14, 28, 14, waiting_ms=30), alone=False)
        costs.note_own(0.002)
    seen = costs.snapshot(0.5, 0.0, 8)
    assert costs.known
    assert seen.step_s == pytest.approx(0.040)
    assert seen.slowest_s == pytest.approx(0.020)
    assert seen.row_s == pytest.approx(0.004)
    assert seen.waiting_s == pytest.approx(0.003, rel=0.01), "what it waited for itself does not count"
    assert seen.own_s == pytest.approx(0.002, rel=0.1)
    assert 0.13 < seen.ways_s < 0.21


# ---- whether it has paid ----


def test_what_does_not_pay_rests_for_longer_each_time() -> None:
    gain, rests = Gain(), []
    gain.note_plain(0.1)
    for _ in range(3):
        gain.note_ahead(TRIAL, TRIAL * 0.12)
        rests.append(0)
        while gain.resting:
            gain.note_plain(0.1)
            rests[-1] += 1
    assert rests == [REST, 2 * REST, 4 * REST]
    gain.note_ahead(TRIAL, TRIAL * 0.05)
    assert not gain.resting
    gain.note_ahead(TRIAL, TRIAL * 0.12)
    gain.note_plain(0.1)
    assert gain.resting
    assert gain.ratio == pytest.approx(0.1 / ((4 * 0.12 + 0.05) / 5))
