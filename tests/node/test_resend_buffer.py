"""What a hop has sent is kept as it was sent, within a bound that all its sessions share."""

from __future__ import annotations

import msgspec

from shoal.node.resend_buffer import ResendBudget, ResendBuffer
from shoal.types import SessionId
from shoal.wire.messages import Step
from shoal.wire.payload import hidden_states


def a_step(position, tokens=1):
    return Step(b"s" * 16, 1, position, tokens, 1, hidden_states("float32", tokens, 2))


def fill(kept, pieces):
    position = 0
    for number, tokens in enumerate(pieces):
        kept.add(a_step(position, tokens), "float32", bytes([number]) * 8 * tokens)
        position += tokens


def test_it_gives_back_what_was_sent_piece_by_piece():
    kept = ResendBuffer(ResendBudget(), merge=False)
    fill(kept, [3, 1, 1])
    entries = kept.below(5)
    assert [(e.position, e.tokens, e.payload[:1]) for e in entries] == [
        (0, 3, b"\0"),
        (3, 1, b"\1"),
        (4, 1, b"\2"),
    ]
    assert kept.below(0) == []


def test_single_rows_are_put_together_where_that_changes_no_bits():
    kept = ResendBuffer(ResendBudget(), merge=True)
    fill(kept, [9] + [1] * 10)
    assert [e.tokens for e in kept.below(19)] == [9, 8, 2]
    assert kept.below(19)[2].payload == bytes([9]) * 8 + bytes([10]) * 8


def test_a_roll_back_into_a_step_of_few_rows_leaves_no_gap_where_rows_stand_alone():
    kept = ResendBuffer(ResendBudget(), merge=True)
    kept.add(a_step(0, 4), "float32", b"".join(bytes([row]) * 8 for row in range(4)))
    kept.add(a_step(2, 2), "float32", bytes([7]) * 16)
    entries = kept.below(4)
    assert [(e.position, e.tokens) for e in entries] == [(0, 4)]
    assert entries[0].payload == b"\0" * 8 + b"\1" * 8 + bytes([7]) * 16


def test_what_steps_name_of_pictures_takes_room_too():
    budget = ResendBudget(limit=100_000)
    kept = ResendBuffer(budget, merge=True)
    grids = tuple((place, 1, 1) for place in range(50))
    for position in range(50, 100):
        step = msgspec.structs.replace(a_step(position), grids=grids)
        kept.add(step, "float32", bytes(8))
    assert kept.below(100) is None and budget.taken <= 100_000
    kept.clear()
    assert budget.taken == 0


def test_a_piece_of_a_longer_sequence_is_sent_again_as_one():
    kept = ResendBuffer(ResendBudget(), merge=True)
    kept.add(
        Step(b"s" * 16, 1, 0, 3, 1, hidden_states("float32", 3, 2), sequence_length=9), "float32", bytes(24)
    )
    for position in (3, 4):
        kept.add(a_step(position), "float32", bytes(8))
    assert [(e.tokens, e.sequence_length) for e in kept.below(5)] == [(3, 9), (2, 0)]


def test_rows_that_see_each_other_are_sent_again_as_one():
    kept, step = ResendBuffer(ResendBudget(), merge=True), a_step(0, 4)
    kept.add(msgspec.structs.replace(step, mutual=((1, 3),)), "float32", bytes(32))
    kept.add(a_step(4), "float32", bytes(8))
    entries = kept.below(5)
    assert [(e.tokens, e.mutual) for e in entries] == [(4, ((1, 3),)), (1, ())]
    assert entries[0].refill(SessionId(b"s" * 16), 2, 0).mutual == ((1, 3),)


def test_what_is_sent_again_says_where_pictures_stand():
    kept, grids = ResendBuffer(ResendBudget(), merge=True), (((0, 2, 2),), ((0, 2, 2), (5, 1, 1)))
    kept.add(msgspec.structs.replace(a_step(0, 5), grids=grids[0]), "float32", bytes(40))
    kept.add(msgspec.structs.replace(a_step(5), grids=grids[1]), "float32", bytes(8))
    (entry,) = kept.below(6)
    assert entry.refill(SessionId(b"s" * 16), 2, 0).grids == grids[1]


def test_after_a_roll_back_only_what_holds_is_kept():
    room = ResendBudget()
    kept = ResendBuffer(room, merge=False)
    fill(kept, [3, 1, 1])
    kept.add(a_step(3), "float32", b"new-----")
    assert [e.payload[:3] for e in kept.below(4)] == [b"\0\0\0", b"new"]
    assert room.taken == 32


def test_a_roll_back_into_a_piece_leaves_a_gap_until_the_session_begins_again():
    kept = ResendBuffer(ResendBudget(), merge=False)
    fill(kept, [4])
    kept.add(a_step(2), "float32", b"--------")
    assert kept.below(3) is None
    kept.add(a_step(0, 2), "float32", b"-" * 16)
    assert [e.tokens for e in kept.below(2)] == [2]


def test_a_position_that_was_never_reached_is_not_made_up():
    kept = ResendBuffer(ResendBudget(), merge=False)
    fill(kept, [4])
    assert kept.below(9) is None


def test_a_session_that_began_with_kept_kv_does_not_have_what_was_below():
    kept = ResendBuffer(ResendBudget(), merge=False)
    kept.add(a_step(192), "float32", bytes(8))
    assert kept.below(193) is None
    assert kept.rows(192, 1, 2) == [bytes(8)]
    fill(kept, [2])
    assert [e.tokens for e in kept.below(2)] == [2]


def test_beyond_the_bound_the_session_with_most_is_kept_no_longer():
    room = ResendBudget(limit=40)
    first, second = ResendBuffer(room, merge=False), ResendBuffer(room, merge=False)
    fill(first, [3])
    fill(second, [1, 3])
    assert first.below(3)
    assert second.below(4) is None
    assert room.taken == 24
    first.clear()
    assert room.taken == 0


def test_who_keeps_much_has_nobody_else_given_up():
    room = ResendBudget(limit=80)
    large, small, late = (ResendBuffer(room, merge=False) for _ in range(3))
    fill(large, [6])
    fill(small, [2])
    assert room.taken == 64
    fill(late, [3])  # 24 bytes: beyond the bound
    assert large.below(6) is None
    assert [len(kept.below(n)) for kept, n in ((small, 2), (late, 3))] == [1, 1]
    large.add(a_step(6), "float32", bytes(8))  # it has a gap: kept again when it begins again
    assert room.taken == 40
    fill(large, [4])
    assert large.below(4)
    assert room.taken == 72
