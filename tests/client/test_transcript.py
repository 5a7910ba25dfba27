"""What a session has told its hops: what they hold, what is owed to them, and what may be taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.ring.prefill import MOST
from shoal.client.transcript import Piece, Transcript, join_singles
from shoal.errors import LocalProtocolError
from shoal.models.build.rope_scaling import RopeScaling

PROMPT = list(range(10))
PHI = RopeScaling(switches=(6,), recomputed=True)
LONGROPE = RopeScaling(switches=(6,))
DYNAMIC = RopeScaling(stretches=(6,))


def told(pieces: list[Piece], scaling: RopeScaling | None = None) -> Transcript:
    """A transcript of what was sent in these pieces."""
    transcript = Transcript(scaling or RopeScaling())
    for piece in pieces:
        transcript.sent(piece)
    return transcript


# --- what was sent -----------------------------------------------------------------------------------------


def test_a_prompt_is_divided_into_pieces_and_they_are_what_the_hops_hold():
    transcript = Transcript(RopeScaling())
    pieces = transcript.divide(PROMPT, 4, 10)
    assert pieces == [Piece([0, 1, 2, 3]), Piece([4, 5, 6, 7]), Piece([8, 9])]
    for piece in pieces:
        transcript.sent(piece)
    assert transcript.held_pieces == pieces
    assert (transcript.token_ids, transcript.held, transcript.owed) == (PROMPT, 10, [])


def test_pieces_say_how_long_the_sequence_is_only_where_the_model_goes_by_it():
    assert Transcript(DYNAMIC).divide([1, 2], 1, 7) == [Piece([1], 7), Piece([2], 7)]


# --- what was sent ahead -----------------------------------------------------------------------------------


def test_a_token_sent_ahead_is_no_part_of_the_session_until_it_is_appended():
    transcript = told([Piece([1, 2])])
    transcript.sent_ahead([3])
    assert (transcript.token_ids, transcript.ahead) == ([1, 2], (3,))
    assert transcript.confirm(Piece([3]))
    assert (transcript.token_ids, transcript.ahead, transcript.held) == ([1, 2, 3], (), 3)
    assert not transcript.confirm(Piece([3])), "it was sent once"


def test_another_token_than_was_sent_ahead_is_not_on_its_way():
    transcript = told([Piece([1, 2])])
    transcript.sent_ahead([3])
    assert not transcript.confirm(Piece([4]))
    assert not transcript.confirm(Piece([3, 4]))
    assert transcript.token_ids == [1, 2]


def test_of_several_sent_ahead_the_first_few_may_be_confirmed_and_the_others_taken_back():
    transcript = told([Piece([1, 2])])
    transcript.sent_ahead([3, 4, 5, 6])
    assert transcript.confirm(Piece([3, 4]))
    assert (transcript.token_ids, transcript.ahead) == ([1, 2, 3, 4], (5, 6))
    transcript.cut(4)
    assert (transcript.token_ids, transcript.ahead) == ([1, 2, 3, 4], ())
    assert transcript.held_pieces == [Piece([1, 2]), Piece([3, 4])]


# --- what is taken back ------------------------------------------------------------------------------------


def test_a_cut_in_the_middle_of_a_piece_leaves_its_beginning():
    transcript = told([Piece([1, 2, 3], 9), Piece([4, 5], 9)])
    transcript.cut(4)
    assert transcript.held_pieces == [Piece([1, 2, 3], 9), Piece([4], 9)]
    transcript.cut(2)
    assert transcript.held_pieces == [Piece([1, 2], 9)]
    assert (transcript.token_ids, transcript.held) == ([1, 2], 2)


@pytest.mark.parametrize("position", [-1, 4])
def test_a_cut_beyond_the_session_is_refused_also_into_what_was_sent_ahead(position: int):
    transcript = told([Piece([1, 2, 3])])
    transcript.sent_ahead([4])
    with pytest.raises(LocalProtocolError):
        transcript.cut(position)
    assert (transcript.token_ids, transcript.ahead) == ([1, 2, 3], (4,))


# --- what is owed ------------------------------------------------------------------------------------------


def test_hops_that_have_lost_all_are_owed_all_in_the_same_pieces_and_the_session_stays():
    pieces = [Piece([1, 2, 3]), Piece([4]), Piece([5])]
    transcript = told(pieces)
    transcript.sent_ahead([6])
    transcript.lose()
    assert transcript.owed == pieces
    assert (transcript.token_ids, transcript.held, transcript.ahead) == ([1, 2, 3, 4, 5], 0, ())


def test_what_is_owed_is_paid_piece_by_piece_and_then_the_session_grows_again():
    transcript = told([Piece([1, 2, 3]), Piece([4])])
    transcript.lose()
    first, second = transcript.owed
    assert not transcript.confirm(first)
    transcript.sent(first)
    assert (transcript.owed, transcript.held) == ([second], 3)
    transcript.sent(second)
    assert transcript.owed == []
    transcript.sent(Piece([5]))
    assert (transcript.token_ids, transcript.held) == ([1, 2, 3, 4, 5], 5)


def test_hops_that_are_lost_amid_a_replay_are_owed_all_again():
    pieces = [Piece([1, 2, 3]), Piece([4])]
    transcript = told(pieces)
    transcript.lose()
    transcript.sent(pieces[0])
    transcript.lose()
    assert transcript.owed == pieces
    transcript.cut(0)
    assert (transcript.owed, transcript.token_ids, transcript.held) == ([], [], 0)


@given(
    st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), max_size=12),
    st.data(),
)
def test_what_is_owed_is_always_the_rest_of_the_session(pieces: list[list[int]], data: st.DataObject):
    transcript = told([Piece(list(token_ids)) for token_ids in pieces])
    expected = [token for token_ids in pieces for token in token_ids]
    position = data.draw(st.integers(0, len(expected)))
    transcript.cut(position)
    transcript.lose()
    transcript.join_singles()
    while transcript.owed:
        owed = [token for piece in transcript.owed for token in piece.token_ids]
        assert owed == expected[transcript.held : position]
        transcript.sent(transcript.owed[0])
    assert transcript.token_ids == expected[:position]


def test_single_tokens_are_put_together_but_not_across_frequencies():
    singles = [Piece([token]) for token in range(10)]
    transcript = told([Piece([90, 91]), *singles])
    transcript.join_singles()
    assert [piece.token_ids for piece in transcript.held_pieces] == [[90, 91], list(range(8)), [8, 9]]
    assert transcript.token_ids == [90, 91, *range(10)]
    assert join_singles([Piece([1], 1), Piece([2], 2)]) == [Piece([1], 1), Piece([2], 2)]


def test_what_an_earlier_session_has_left_is_owed_in_steps_of_a_usual_size():
    transcript = Transcript(RopeScaling())
    transcript.take_up(range(1100))
    assert (transcript.held, transcript.length, transcript.owed) == (1100, 1100, [])
    transcript.lose()
    assert [len(piece.token_ids) for piece in transcript.owed] == [MOST, MOST, 1100 - 2 * MOST]
    assert [token for piece in transcript.owed for token in piece.token_ids] == list(range(1100))


# --- what can be used again --------------------------------------------------------------------------------


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
    assert told(held, scaling).outdated(length) is expected


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
    assert told(held, scaling).reusable(PROMPT) == expected
