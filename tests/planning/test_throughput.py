"""What a swarm can carry: as a flow finds it, block by block and set by set."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.planning.throughput import ServingPeer, throughput
from shoal.types import Span


def at(start: int, end: int, speed: float) -> ServingPeer:
    return ServingPeer(Span(start, end), speed)


@pytest.mark.parametrize(
    ("what", "placed", "expected"),
    [
        ("one peer divides its speed over all blocks", [at(0, 4, 8.0)], 2.0),
        ("two peers with all blocks add up", [at(0, 4, 8.0), at(0, 4, 4.0)], 3.0),
        ("the slower half bounds a chain", [at(0, 2, 8.0), at(2, 4, 2.0)], 1.0),
        ("a peer of all blocks helps where it is needed", [at(0, 2, 2.0), at(2, 4, 6.0), at(0, 4, 4.0)], 3.0),
        ("a block that nobody serves stops all", [at(0, 3, 8.0)], 0.0),
        ("the worst blocks need not be neighbours", [at(0, 1, 1.0), at(1, 2, 9.0), at(2, 3, 1.0)], 1.0),
        ("nobody", [], 0.0),
    ],
)
def test_tokens_in_a_second(what, placed, expected):
    assert throughput(placed, 4 if "neighbours" not in what else 3) == pytest.approx(expected), what


spans = st.tuples(st.integers(0, 5), st.integers(1, 6)).filter(lambda s: s[0] < s[1])


@given(st.lists(st.tuples(spans, st.sampled_from([0.5, 1.0, 3.0, 7.5])), max_size=6))
def test_it_is_the_least_of_all_sets_of_blocks(drawn):
    placed = [at(*span, speed) for span, speed in drawn]
    sets = [blocks for size in range(1, 7) for blocks in combinations(range(6), size)]
    least = min(
        sum(p.speed for p in placed if any(b in p.span for b in blocks)) / len(blocks) for blocks in sets
    )
    assert throughput(placed, 6) == pytest.approx(least)
