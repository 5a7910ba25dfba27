"""How a prompt is cut: small enough that every stage has work, large enough that the kernels do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.ring.prefill import EXACT, LEAST, MOST, Piece, joined, outdated, piece_tokens, reusable
from shoal.models.build.rope_scaling import RopeScaling

PROMPT = list(range(10))
PHI = RopeScaling(switches=(6,), recomputed=True)
LONGROPE = RopeScaling(switches=(6,))
DYNAMIC = RopeScaling(stretches=(6,))


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


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_pieces_are_neither_too_small_nor_too_large(prompt: int, stages: int):
    assert LEAST <= piece_tokens("int8", prompt, stages) <= MOST


@given(st.integers(1, 1 << 20), st.integers(1, 64))
def test_fp32_is_cut_in_the_same_places_on_any_route(prompt: int, stages: int):
    assert piece_tokens("fp32", prompt, stages) == EXACT


def test_single_tokens_are_put_together_but_not_across_frequencies():
    singles = [Piece([token]) for token in range(10)]
    assert [piece.token_ids for piece in joined([Piece([90, 91]), *singles])] == [
        [90, 91],
        list(range(8)),
        [8, 9],
    ]
    assert joined([Piece([1], 1), Piece([2], 2)]) == [Piece([1], 1), Piece([2], 2)]


@pytest.mark.parametrize(
    ("scaling", "held", "length", "expected"),
    [
        (RopeScaling(), [Piece([0] * 6, 0)], 7, False),
        (PHI, [Piece([0] * 5, 5)], 6, False),
        (PHI, [Piece([0] * 6, 6)], 7, True),  # computed again where it grows beyond the limit …
        (LONGROPE, [Piece([0] * 6, 6)], 7, False),  # … or not
        (DYNAMIC, [Piece([0] * 6, 6), Piece([0], 7)], 8, False),
        (PHI, [Piece([0] * 4, 9)], 5, True),  # rolled back into what was longer
        (LONGROPE, [Piece([0] * 4, 9)], 5, True),
        (DYNAMIC, [Piece([0] * 4, 9)], 5, True),
        (LONGROPE, [Piece([0] * 4, 9)], 8, False),
        (DYNAMIC, [Piece([0] * 4, 9)], 8, True),
        (DYNAMIC, [Piece([0] * 8, 9)], 9, False),  # the last token again
    ],
)
def test_keys_of_other_frequencies_are_outdated_as_in_transformers(scaling, held, length, expected):
    assert outdated(held, scaling, length) is expected


@pytest.mark.parametrize(
    ("scaling", "held", "expected"),
    [
        (RopeScaling(), [Piece(PROMPT[:4]), Piece([4, 99])], 5),
        (RopeScaling(), [Piece(PROMPT)], 9),
        (RopeScaling(), [], 0),
        (LONGROPE, [Piece(PROMPT[:4], 4)], 0),
        (LONGROPE, [Piece(PROMPT[:4], 7)], 4),
        (LONGROPE, [Piece(PROMPT[:8], 8), Piece([99], 9)], 8),
        (DYNAMIC, [Piece(PROMPT[:8], 8)], 0),
        (DYNAMIC, [Piece(PROMPT, 10)], 9),
    ],
)
def test_a_prompt_reuses_what_it_would_have_computed_itself(scaling, held, expected):
    assert reusable(held, scaling, PROMPT) == expected
