"""What a lab of payments finds in books: who lost more than a window, and coins that do not add up."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from shoal.testing.lab.pay.books import HopBooks, Purse, judge_books, judge_coins, losses
from shoal.testing.lab.pay.lab import HOPS, planned_kills

WELL = HopBooks(node="a", window=100, work=1000, owed=990, paid=980, signed=990, deposit=5000, redeemed=400)


def test_each_of_the_three_is_killed_in_its_turn_and_a_seed_makes_the_same_plan() -> None:
    kills = planned_kills(7, 9)
    assert kills == planned_kills(7, 9) != planned_kills(8, 9)
    assert Counter(one.victim for one in kills) == {"client": 3, "hop": 3, "chain": 3}
    assert all(0 <= one.share < 1 and one.hop in range(HOPS) for one in kills)


def test_losses_of_less_than_a_window_are_told_and_are_no_fault() -> None:
    after = replace(WELL, work=1300, paid=1200, signed=1350)
    assert judge_books([WELL], [after]) == []
    found = losses([WELL], [after])
    assert (found.hop, found.client) == (0.8, 0.5)
    # What was lost before is no loss of this run.
    assert losses([after], [after]).hop == 0.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"work": 1200, "paid": 1080, "signed": 1080}, None),
        ({"work": 1201, "paid": 1080, "signed": 1080}, "101 more unpaid"),
        ({"signed": 1101}, "has signed for 1101"),
        ({"paid": 991}, "991 are paid, and 990 signed"),
        ({"redeemed": 981}, "981 are redeemed, and 980 paid"),
        ({"deposit": 989}, "990 are signed, and 989 in escrow"),
        ({"paid": 979}, "a voucher that was there is gone"),
    ],
)
def test_whoever_loses_more_than_a_window_or_a_voucher_is_named(
    changes: dict[str, int], told: str | None
) -> None:
    found = judge_books([WELL], [replace(WELL, **changes)])
    assert (told is None) == (found == [])
    assert told is None or any(told in one for one in found), found


def test_coins_add_up_to_the_last_one_or_it_is_told() -> None:
    done = replace(WELL, redeemed=980)
    hop, client = Purse(given=50, now=1023, fees=7), Purse(given=10_000, now=4_997, fees=3)
    assert judge_coins([done], {"a": hop}, client) == []
    assert len(judge_coins([WELL], {"a": hop}, client)) == 2
    assert len(judge_coins([done], {"a": replace(hop, now=1024)}, client)) == 1
    assert len(judge_coins([done], {"a": hop}, replace(client, now=4_996))) == 1
