"""Which span a joining node takes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.routing.placement import choose_span
from shoal.types import Span


@pytest.mark.parametrize(
    ("what", "coverage", "fits", "expected"),
    [
        ("an empty swarm is begun at the start", [0] * 30, 10, Span(0, 10)),
        ("a gap is filled", [1] * 10 + [0] * 10 + [1] * 10, 10, Span(10, 20)),
        ("the weakest block is taken", [2, 2, 1, 2, 2], 1, Span(2, 3)),
        ("a gap longer than the node is begun", [1] * 10 + [0] * 20, 10, Span(10, 20)),
        ("a gap shorter than the node is covered whole", [1, 1, 1, 0, 0, 1, 1], 4, Span(1, 5)),
        ("a node with room for all takes all", [1, 2, 3], 99, Span(0, 3)),
    ],
)
def test_a_node_takes_what_the_swarm_lacks_most(what, coverage, fits, expected):
    assert choose_span(coverage, fits) == expected, what


def test_three_nodes_cover_a_model_one_after_another():
    coverage = [0] * 30
    for _ in range(3):
        span = choose_span(coverage, 10)
        for block in range(span.start, span.end):
            coverage[block] += 1
    assert coverage == [1] * 30


def test_a_node_for_which_no_block_fits_is_refused():
    with pytest.raises(ValueError, match="not one block"):
        choose_span([0, 0], 0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=20), st.integers(1, 20))
def test_the_weakest_block_is_always_among_those_taken(coverage, fits):
    span = choose_span(coverage, fits)
    assert min(coverage[span.start : span.end]) == min(coverage)
