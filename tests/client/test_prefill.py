"""How a prompt is cut: small enough that every stage has work, large enough that the kernels do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.ring.prefill import EXACT, FAR_S, LEAST, MOST, grow, link_width, piece_tokens
from shoal.client.transcript import Piece


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
    assert piece_tokens("bf16", 20_000, 3, width="thin") == 278 < piece_tokens("bf16", 20_000, 3)
    assert piece_tokens("bf16", 4000, 3, width="thin") == LEAST
    assert piece_tokens("bf16", 4000, 3, width="unknown") == LEAST
    assert piece_tokens("bf16", 4000, 1, width="thin") == MOST, "there is no other hop to wait for it"


def test_a_link_is_thin_where_it_takes_long_for_a_row_beside_what_a_hop_does():
    assert link_width(1152, 2.5e6, 0.02, 0.010) == "thin"
    assert link_width(1152, 2.5e6, 0.02, 0.030) == "wide"
    assert link_width(1152, 125e6, 0.02, 0.010) == "wide"
    assert link_width(1152, 2.5e6, 0.02, 0.0) == "thin", "nothing is known of the hops"


def test_a_link_that_was_not_timed_may_be_thin_where_it_goes_farther_than_a_local_network():
    assert link_width(1152, None, 2 * FAR_S, 0.001) == "unknown"
    assert link_width(1152, None, FAR_S / 2, 0.001) == "wide"
    assert link_width(1152, None, None, 0.001) == "wide"


def test_pieces_grow_once_the_link_turns_out_to_be_wide():
    pieces = [Piece(list(range(at, min(at + 64, 1000))), 7) for at in range(0, 1000, 64)]
    sent: list[Piece] = []
    for piece in grow(pieces, lambda: 64 if len(sent) < 4 else 334):
        sent.append(piece)
    assert [len(piece.token_ids) for piece in sent] == [64, 64, 64, 64, 320, 320, 104]
    assert [token for piece in sent for token in piece.token_ids] == list(range(1000))
    assert {piece.sequence_length for piece in sent} == {7}
    assert pieces[4].token_ids == list(range(256, 320)), "what may have to be sent again is as it was"


def test_the_first_piece_is_never_joined_to_another():
    assert list(grow([Piece([0]), Piece([1]), Piece([2])], lambda: 9)) == [Piece([0]), Piece([1, 2])]
    assert list(grow([], lambda: 9)) == []


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_pieces_are_neither_too_small_nor_too_large(prompt: int, stages: int):
    assert LEAST <= piece_tokens("int8", prompt, stages) <= MOST


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_fp32_is_cut_in_the_same_places_on_any_route(prompt: int, stages: int):
    assert piece_tokens("fp32", prompt, stages) == EXACT
