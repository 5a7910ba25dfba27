"""In a large swarm many see the same lack at once; they neither trample one place nor leave a gap."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.planning.level import (
    HELPERS,
    KEEPERS,
    LOOKERS,
    MANY,
    BlockLevels,
    look_period_s,
    looks_at_once,
)
from shoal.planning.placement import GAIN, choose_move, choose_span
from shoal.planning.throughput import ServingPeer, throughput
from shoal.types import Span

BLOCKS = 32


def a_node(chance: Random) -> ServingPeer:
    """Somewhere; of the speeds and sizes that homes and data centres have."""
    fits = chance.randint(3, 14) if chance.random() < 0.75 else chance.randint(13, BLOCKS)
    return ServingPeer(Span(0, fits), chance.lognormvariate(5, 1), fits)


def joined(
    nodes: list[ServingPeer], placed: list[ServingPeer], unseen: int, chance: Random
) -> list[ServingPeer]:
    """Where they are once all have joined, when each sees the swarm as it was so many joins before."""
    before, placed = len(placed), list(placed)
    for node in nodes:
        seen = placed[: max(before, len(placed) - unseen)]
        placed.append(replace(node, span=choose_span(seen, BLOCKS, node.fits, node.speed, chance=chance)))
    return placed


def share(placed: list[ServingPeer]) -> float:
    """What they carry, in shares of what they would, if each could give its speed to any block."""
    return throughput(placed, BLOCKS) / (sum(peer.speed for peer in placed) / BLOCKS)


def moved(placed: list[ServingPeer], chance: Random) -> tuple[list[ServingPeer], int]:
    """Where they are once each has looked around, and how many moved."""
    placed, moves = list(placed), 0
    for number, here in enumerate(placed):
        move = choose_move(placed[:number] + placed[number + 1 :], here, BLOCKS, chance=chance)
        if move is not None:
            placed[number], moves = replace(here, span=move.span), moves + 1
    return placed, moves


def test_a_crowd_that_sees_nothing_of_itself_spreads_over_the_model():
    chance = Random(1)
    there = joined([a_node(chance) for _ in range(100)], [], 0, chance)
    crowd = joined([a_node(chance) for _ in range(400)], there, 400, chance)
    before, after = BlockLevels(there, BLOCKS, None).peers, BlockLevels(crowd, BLOCKS, None).peers
    came = after - before
    assert came.min() > 0.2 * came.max()
    assert share(crowd) > 0.6


def test_a_crowd_of_which_each_sees_all_but_the_last_few_carries_what_it_can():
    chance = Random(2)
    assert share(joined([a_node(chance) for _ in range(300)], [], 16, chance)) > 1 - GAIN


def test_those_who_move_after_a_crowd_make_it_whole_and_then_stay():
    chance = Random(3)
    there = joined([a_node(chance) for _ in range(MANY)], [], 0, chance)
    left = [replace(node, span=Span(0, node.fits)) for node in map(a_node, [chance] * 200)]
    crowd = [*there, *left]
    assert share(crowd) < 1 - GAIN
    settled, moves = moved(crowd, chance)
    assert share(settled) >= 1 - GAIN
    assert 0 < moves < len(crowd) / 3
    assert moved(settled, chance)[1] == 0


def test_a_gap_is_closed_and_no_other_is_made():
    chance = Random(4)
    left = [ServingPeer(Span(0, 16), chance.uniform(50, 150), 16) for _ in range(MANY)]
    alone = ServingPeer(Span(10, 20), 100.0, 10)
    move = choose_move(left, alone, BLOCKS, chance=chance)
    assert move is not None
    assert move.span == Span(16, 26)  # from 16 on nobody else serves
    helper = choose_move([*left, alone], replace(alone, span=Span(0, 10)), BLOCKS, chance=chance)
    assert helper is not None
    assert helper.span.start >= 20
    assert "served by nobody" in helper.why


@given(st.integers(0, 10_000))
def test_no_move_uncovers_a_block(seed):
    chance = Random(seed)
    placed = [replace(node, span=_anywhere(node, chance)) for node in map(a_node, [chance] * (MANY + 1))]
    here, others = placed[0], placed[1:]
    move = choose_move(others, here, BLOCKS, chance=chance)
    if move is not None:
        before, after = (
            BlockLevels([*others, one], BLOCKS, None).peers for one in (here, replace(here, span=move.span))
        )
        assert not ((before > 0) & (after == 0)).any()


def _anywhere(node: ServingPeer, chance: Random) -> Span:
    start = chance.randrange(BLOCKS - node.fits + 1)
    return Span(start, start + node.fits)


def test_what_a_few_of_many_say_moves_few_by_chance():
    """Of an even swarm some are drawn: they look uneven, and hardly anybody goes by that who knows it."""
    chance = Random(5)
    everyone = quarters(200, 0, 8, 16, 24)
    for_all, for_some = 0, 0
    for _ in range(60):
        here, *others = chance.sample(everyone, 101)
        for_all += choose_move(others, here, BLOCKS, chance=chance) is not None
        for_some += choose_move(others, here, BLOCKS, chance=chance, peers=len(everyone)) is not None
    assert for_all > 60 / 3
    assert for_some < for_all / 4


def test_a_claim_is_kept_when_only_chance_would_choose_another_place():
    chance = Random(6)
    left = [ServingPeer(Span(0, 16), 100.0, 16) for _ in range(MANY)]
    right = [ServingPeer(Span(16, 32), 100.0, 16) for _ in range(8)]
    here = ServingPeer(Span(0, 8), 100.0, 8)
    move = choose_move([*left, *right], here, BLOCKS, chance=chance)
    assert move is not None
    kept = choose_move([*left, *right], here, BLOCKS, chance=chance, claimed=move.span)
    assert kept is not None
    assert kept.span == move.span
    others = [ServingPeer(move.span, 100.0, 8) for _ in range(200)]  # who has gone there before
    assert choose_move([*left, *right, *others], here, BLOCKS, chance=chance, claimed=move.span) is None


@pytest.mark.parametrize("count", [3, MANY + 10])
def test_blocks_are_not_left_to_those_who_are_only_coming(count: int):
    """As many as are placed serve the first blocks, or will, and nobody the others."""
    here, others = ServingPeer(Span(0, 8), 100.0, 8), [ServingPeer(Span(0, 8), 100.0, 8)] * count
    move = choose_move(others, here, BLOCKS, chance=Random(9))
    assert move is not None
    assert move.span.start >= 8
    assert choose_move(others, here, BLOCKS, chance=Random(9), keeping=[]) is None
    assert choose_move(others, here, BLOCKS, chance=Random(9), keeping=others[:1]) is not None


def test_as_many_look_in_a_minute_however_many_there_are():
    assert look_period_s(60.0, 1) == look_period_s(60.0, LOOKERS) == 60.0
    assert look_period_s(60.0, 10 * LOOKERS) == 600.0
    chance = Random(7)
    assert all(looks_at_once(2, chance) for _ in range(50))
    assert sum(looks_at_once(1000, chance) for _ in range(1000)) == pytest.approx(HELPERS, abs=8)


def quarters(count: int, *starts: int) -> list[ServingPeer]:
    """So many nodes of one speed on each of these quarters of the model."""
    return [ServingPeer(Span(start, start + 8), 100.0, 8) for start in starts for _ in range(count)]


def fewest(honest: list[ServingPeer]) -> int:
    return int(BlockLevels(honest, BLOCKS, None).peers.min())


def settled_beside(honest: list[ServingPeer], liars: list[ServingPeer]) -> list[ServingPeer]:
    """Where the honest are once each has looked around three times; liars stay, and say what they say."""
    chance = Random(8)
    for _ in range(3):
        for number, here in enumerate(honest):
            others = [*honest[:number], *honest[number + 1 :], *liars]
            move = choose_move(others, here, BLOCKS, chance=chance)
            if move is not None:
                honest[number] = replace(here, span=move.span)
    return honest


@pytest.mark.parametrize("said", [401.0, 2_000.0, 1e12])
@pytest.mark.parametrize("span", [Span(0, 8), Span(3, 4)])
def test_two_who_say_that_they_are_fast_do_not_empty_a_span(said: float, span: Span):
    liars = [ServingPeer(span, said, 8)] * 2
    assert fewest(settled_beside(quarters(20, 0, 8, 16, 24), liars)) >= 10


@pytest.mark.parametrize("said", [1e-6, 2_000.0])
def test_many_who_say_that_they_are_far_from_usual_leave_two_of_the_others_in_place(said: float):
    liars = [ServingPeer(Span(0, 8), said, 8)] * 30
    assert fewest(settled_beside(quarters(20, 0, 8, 16, 24), liars)) >= KEEPERS


def test_blocks_that_only_the_unbelievably_fast_serve_draw_others():
    liars = [ServingPeer(Span(0, 8), 2_000.0, 8)] * 2
    assert fewest(settled_beside(quarters(25, 8, 16, 24), liars)) >= KEEPERS


def test_who_joins_goes_to_the_blocks_that_only_the_unbelievably_fast_serve():
    liars = [ServingPeer(Span(0, 8), 1e12, 8)] * 2
    placed = [*quarters(25, 8, 16, 24), *liars]
    joining = [choose_span(placed, BLOCKS, 8, chance=Random(seed)) for seed in range(5)]
    assert all(span.start == 0 for span in joining)
