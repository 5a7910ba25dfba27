"""How a prompt is cut: small enough that every stage has work, large enough that the kernels do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.ring.prefill import EXACT, LEAST, MOST, is_thin, piece_tokens


@pytest.mark.parametrize(
    ("prompt", "stages", "tokens"),
    [
        (20, 3, LEAST),
        (512, 3, LEAST),
        (1200, 3, 100),
        (4000, 3, 334),
        (100_000, 3, MOST),
        (4000, 1, MOST),
    ],
)
def test_every_stage_has_four_pieces_where_they_are_not_too_small(prompt: int, stages: int, tokens: int):
    assert piece_tokens("bf16", prompt, stages) == tokens


def test_over_a_thin_link_pieces_are_smaller_and_no_smaller_than_the_kernels_like():
    assert piece_tokens("bf16", 20_000, 3, thin=True) == 278 < piece_tokens("bf16", 20_000, 3)
    assert piece_tokens("bf16", 4000, 3, thin=True) == LEAST
    assert piece_tokens("bf16", 4000, 1, thin=True) == MOST, "there is no other hop to wait for it"


def test_a_link_is_thin_where_it_takes_long_for_a_row_beside_what_a_hop_does():
    assert is_thin(1152, 2.5e6, 0.010)
    assert not is_thin(1152, 2.5e6, 0.030)
    assert not is_thin(1152, 125e6, 0.010)
    assert not is_thin(1152, None, 0.001), "the link is not known"
    assert is_thin(1152, 2.5e6, 0.0), "nothing is known of the hops"


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_pieces_are_neither_too_small_nor_too_large(prompt: int, stages: int):
    assert LEAST <= piece_tokens("int8", prompt, stages) <= MOST


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_fp32_is_cut_in_the_same_places_on_any_route(prompt: int, stages: int):
    assert piece_tokens("fp32", prompt, stages) == EXACT
