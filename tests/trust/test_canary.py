"""Canaries: when they are due, what they say, and how soon they find who is honest to known clients alone."""

from __future__ import annotations

from itertools import count, pairwise
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.testing.sim.audits import SimulatedClient, named_within
from shoal.trust.audit import AuditAccount, next_target
from shoal.trust.audit_record import CanaryCounts
from shoal.trust.canary import CANARY_COST, KEPT_TEXTS, MOST_PAUSE_S, CanaryTexts, canary_pause_s, is_due

from .test_audit import ALL, BLOCKS, ROW
from .test_receipts import HONEST, TOKENS

COST = TOKENS * BLOCKS


def test_one_is_due_once_its_share_of_the_budget_has_room_for_its_audits_too() -> None:
    enough = CANARY_COST * COST / (0.05 * 0.5)
    assert is_due(AuditAccount(earned=enough), COST, 0.05, 0.5)
    assert not is_due(AuditAccount(earned=enough - 1), COST, 0.05, 0.5)
    assert not is_due(AuditAccount(earned=enough).pay_canary(1), COST, 0.05, 0.5)
    assert is_due(AuditAccount(earned=enough).pay(1e9), COST, 0.05, 0.5)  # audits do not take it away
    assert not is_due(AuditAccount(earned=1e12), COST, 0.05, 0.0)


def test_what_one_has_not_used_is_given_back() -> None:
    account = AuditAccount(earned=100.0).pay(3).pay_canary(30).pay_canary(-10)
    assert (account.spent, account.canaries, account.share, account.canary_share) == (23, 20, 0.23, 0.2)
    assert account.pay_canary(-100).canaries == 0


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 0.999), min_size=2, max_size=60),
    st.sampled_from([0.01, 0.05, 0.3]),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_audits_and_canaries_together_never_take_more_than_the_budget(
    chance: list[float], budget: float, share: float, used: float
) -> None:
    numbers = (chance[n % len(chance)] for n in count())
    now = AuditAccount().draw(lambda: next(numbers))
    for _ in range(40):
        now = now.answered(TOKENS, BLOCKS)
        while (found := next_target(now, HONEST, dict(ALL), budget * (1 - share), ROW)) is not None:
            now = now.pay(found.cost).draw(lambda: next(numbers))
        if is_due(now, COST, budget, share):
            now = now.pay_canary(CANARY_COST * COST).pay_canary(-(CANARY_COST - 1) * COST * used)
        assert now.spent <= budget * now.earned * (1 + 1e-9)


def test_the_pause_is_drawn_by_chance_and_has_an_end() -> None:
    chance = Random(1).random
    pauses = [canary_pause_s(chance) for _ in range(2000)]
    assert 55 < sum(pauses) / len(pauses) < 65
    assert canary_pause_s(lambda: 1 - 2**-53) == MOST_PAUSE_S


# ---- what they say ----


def test_before_the_model_has_written_anything_they_are_words_as_often_as_words_are() -> None:
    texts, chance = CanaryTexts(range(1000, 2000)), Random(2).random
    text = texts.draw(4000, chance)
    assert len(text) == 4000 and set(text) <= set(range(1000, 2000))
    often = sum(token < 1032 for token in text)
    assert 0.4 < often / len(text) < 0.6  # half of all is in the 32 words that are used most
    assert texts.draw(100, chance) != texts.draw(100, chance)


def test_then_they_are_passages_of_what_the_model_wrote_put_together_anew() -> None:
    texts, chance = CanaryTexts(range(10)), Random(3).random
    written = [list(range(at, at + 400)) for at in (1000, 2000, 3000)]
    for text in written:
        texts.keep(text)
    text = texts.draw(300, chance)
    assert len(text) == 300 and min(text) >= 1000
    assert text not in written and texts.draw(300, chance) != text
    pairs = sum(after == before + 1 for before, after in pairwise(text))
    assert pairs > 250  # it reads as the texts do


def test_what_is_short_or_goes_round_in_a_circle_is_not_kept_and_of_the_rest_the_last() -> None:
    texts, chance = CanaryTexts(()), Random(4).random
    texts.keep([1, 2, 3])
    texts.keep([7, 8, 9] * 40)
    assert texts.draw(20, chance) == []
    for number in range(3 * KEPT_TEXTS):
        texts.keep([1000 * number + at for at in range(20)])
    assert min(texts.draw(2000, chance)) >= 1000 * 2 * KEPT_TEXTS


# ---- whom they find ----


def test_who_lies_to_strangers_alone_is_named_by_canaries_and_nobody_else_is() -> None:
    runs = [SimulatedClient(seed, 1.0, 0.5, 0.5, spared=True).run(40) for seed in range(4)]
    assert named_within(runs, 40) == len(runs)
    assert sum(run.accused for run in runs) == 0
    assert max(run.share for run in runs) <= 0.5
    blind = SimulatedClient(0, 1.0, 0.5, spared=True).run(20)
    assert (blind.named_at, blind.accused) == (None, 0)  # audits alone never find it


def test_canaries_leave_audits_enough_to_find_who_lies_to_everybody() -> None:
    runs = [SimulatedClient(seed, 1.0, 0.5, 0.5).run(40) for seed in range(2)]
    assert named_within(runs, 40) == len(runs)
    honest = SimulatedClient(1, 0.0, 0.5, 0.5).run(20)
    assert (honest.named_at, honest.accused) == (None, 0)


def test_what_they_came_to_is_counted() -> None:
    counts = CanaryCounts().count("same").count("same").count("cheat").count("failed")
    assert (counts.same, counts.cheat, counts.open, counts.failed, counts.sent) == (2, 1, 0, 1, 4)
