"""What a pull asks of whom: pure, in time that the tests make."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal.models.checkpoint.manifest import CHUNK, ManifestItem
from shoal.sharing.pull_plan import (
    FAILURES,
    FIRST_WINDOW,
    HASHES,
    LATE_S,
    MAX_UNDER_WAY,
    MAX_WINDOW,
    SILENT_S,
    PieceAsk,
    PieceKey,
    PullPlan,
)
from shoal.types import PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def plan_of(*chunks: int) -> PullPlan:
    """A plan for items of so many chunks, the hashes of which are known."""
    items = [
        ManifestItem(str(n), count * CHUNK, "", "U8", (count * CHUNK,)) for n, count in enumerate(chunks)
    ]
    plan = PullPlan(items, {number: range(count) for number, count in enumerate(chunks)})
    for number in range(len(chunks)):
        plan.listed(number)
    return plan


def everything(item: int) -> bool:
    return True


def answer(plan: PullPlan, ask: PieceAsk, now: float) -> None:
    plan.came(ask.peer, ask.piece, now)
    plan.checked(ask.piece)


def simulate(plan: PullPlan, speeds: dict[PeerId, float], until: float = 60.0) -> dict[PeerId, int]:
    """How many pieces each peer has sent when all is there. ``speeds``: pieces a second, in turn."""
    busy: dict[PeerId, float] = dict.fromkeys(speeds, 0.0)
    due: list[tuple[float, PieceAsk]] = []
    sent = dict.fromkeys(speeds, 0)
    now = 0.0
    while not plan.done:
        for ask in plan.next_asks(now):
            busy[ask.peer] = max(now, busy[ask.peer]) + 1 / speeds[ask.peer]
            due.append((busy[ask.peer], ask))
        due.sort()
        now, ask = due.pop(0)
        assert now < until
        sent[ask.peer] += 1
        answer(plan, ask, now)
    return sent


def test_all_is_asked_once_in_the_items_order() -> None:
    plan = plan_of(3, 2)
    plan.add_peer(A, everything)
    asked: list[PieceKey] = []
    now = 0.0
    while not plan.done:
        for ask in plan.next_asks(now):
            asked.append(ask.piece)
            answer(plan, ask, now := now + 0.01)
    assert asked == [PieceKey(0, 0), PieceKey(0, 1), PieceKey(0, 2), PieceKey(1, 0), PieceKey(1, 1)]


def test_a_newcomer_is_asked_for_little_and_a_fast_peer_for_much() -> None:
    plan = plan_of(400)
    plan.add_peer(A, everything)
    asks = plan.next_asks(0.0)
    assert len(asks) == FIRST_WINDOW
    now = 0.0
    for _ in range(40):
        now += 0.005
        answer(plan, asks.pop(0), now)
        asks += plan.next_asks(now)
    assert len(asks) == MAX_WINDOW


def test_slow_peers_are_given_less_in_proportion() -> None:
    plan = plan_of(330)
    for peer in (A, B, C):
        plan.add_peer(peer, everything)
    sent = simulate(plan, {A: 100.0, B: 10.0, C: 1.0})
    assert sum(sent.values()) == 330, "nothing came twice"
    assert sent[A] > 270
    assert 15 < sent[B] < 60
    assert sent[C] <= 5


def test_nobody_is_asked_for_what_it_does_not_have() -> None:
    plan = plan_of(2, 2, 1)
    plan.add_peer(A, lambda item: item == 0)
    plan.add_peer(B, lambda item: item == 1)
    assert {(ask.peer, ask.piece.item) for ask in plan.next_asks(0.0)} == {(A, 0), (B, 1)}
    assert plan.unheld() == [2]


def test_chunks_are_asked_for_once_their_hashes_are_known() -> None:
    items = [ManifestItem("w", 3 * CHUNK, "", "U8", (3 * CHUNK,))]
    plan = PullPlan(items, {0: range(3)})
    plan.add_peer(A, everything)
    plan.add_peer(B, everything)
    (ask,) = plan.next_asks(0.0)
    assert ask.piece == PieceKey(0, HASHES)
    assert plan.next_asks(0.1) == []
    answer(plan, ask, 0.2)
    assert all(ask.piece.chunk != HASHES for ask in plan.next_asks(0.2))


def test_an_item_of_one_chunk_needs_no_list() -> None:
    plan = PullPlan([ManifestItem("w", 3, "", "U8", (3,))], {0: [0]})
    plan.add_peer(A, everything)
    assert plan.next_asks(0.0) == [PieceAsk(A, PieceKey(0, 0))]


def test_who_sends_a_wrong_piece_is_asked_for_nothing_more_and_another_for_all_it_had() -> None:
    plan = plan_of(2)
    plan.add_peer(A, everything)
    first, second = plan.next_asks(0.0)
    plan.came(A, first.piece, 0.1)
    plan.wrong(A, first.piece)
    assert plan.peers == []
    assert plan.next_asks(0.1) == []
    plan.add_peer(B, everything)
    assert {ask.piece for ask in plan.next_asks(0.2)} == {first.piece, second.piece}


def test_who_fails_rests_ever_longer_and_is_given_up_in_the_end() -> None:
    plan = plan_of(1)
    plan.add_peer(A, everything)
    now, rests = 0.0, list[float]()
    for failure in range(FAILURES):
        (ask,) = plan.next_asks(now)
        gone = plan.failed(A, ask.piece, now)
        assert gone == (failure == FAILURES - 1)
        assert plan.next_asks(now) == []
        if not gone:
            rests.append(plan.wake_at(now) - now)
            now = plan.wake_at(now)
    assert rests == [0.5, 1.0, 2.0, 4.0]


def test_who_rests_long_or_sends_nothing_gives_its_place_to_another() -> None:
    plan = plan_of(100)
    for peer in (A, B, C):
        plan.add_peer(peer, everything)
    asked = plan.next_asks(0.0)
    asks = {ask.peer: ask for ask in asked}
    assert plan.spare_peer(0.0) is None
    for ask in asked:
        if ask.peer == B:
            answer(plan, ask, 1.0)
    plan.failed(C, asks[C].piece, 1.0, rest_s=86400.0)
    assert plan.spare_peer(1.0) == (C, 86401.0)
    plan.drop_peer(C)
    assert plan.spare_peer(1.0) is None
    assert plan.spare_peer(SILENT_S + 0.5) == (A, SILENT_S + 0.5)
    plan.drop_peer(A)
    assert plan.spare_peer(SILENT_S + 0.5) is None


def test_a_late_piece_is_asked_of_one_other_and_counts_once() -> None:
    plan = plan_of(1)
    plan.add_peer(A, everything)
    (late,) = plan.next_asks(0.0)
    plan.add_peer(B, everything)
    plan.add_peer(C, everything)
    assert plan.next_asks(LATE_S / 2) == []
    (again,) = plan.next_asks(LATE_S)
    assert again.piece == late.piece
    assert again.peer != A
    assert plan.next_asks(LATE_S + 1) == []
    answer(plan, again, LATE_S + 1)
    assert plan.done
    plan.came(A, late.piece, LATE_S + 2)
    assert not plan.checked(late.piece)


@pytest.mark.parametrize(
    "end", [lambda plan, ask: plan.drop_peer(A), lambda plan, ask: plan.failed(A, ask.piece, 1)]
)
def test_what_a_lost_peer_was_asked_for_goes_to_others(end: Callable[[PullPlan, PieceAsk], object]) -> None:
    plan = plan_of(1)
    plan.add_peer(A, everything)
    (ask,) = plan.next_asks(0.0)
    end(plan, ask)
    plan.add_peer(B, everything)
    assert plan.next_asks(1.0) == [PieceAsk(B, ask.piece)]


def test_what_is_under_way_has_a_bound_however_many_peers_there_are() -> None:
    plan = plan_of(1000)
    for number in range(100):
        plan.add_peer(PeerId(str(number)), everything)
    assert len(plan.next_asks(0.0)) == MAX_UNDER_WAY


def test_a_plan_for_nothing_is_done() -> None:
    assert plan_of().done
    assert plan_of(0).done
