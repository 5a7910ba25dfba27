"""What a channel keeps of what it has sent, and when it looks for another way: pure."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.net.moving.schedule import LATER_S, LONGEST_S, RESCUES, RESCUES_S, SOON_S, MoveSchedule
from shoal.net.moving.sent_tail import SentTail


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=30), st.data())
def test_what_follows_a_position_is_what_was_sent(pieces: list[bytes], data: st.DataObject) -> None:
    tail, whole = SentTail(limit=40), b"".join(pieces)
    acknowledged = data.draw(st.integers(0, len(whole)))
    for piece in pieces:
        tail.add(piece)
    tail.acknowledge(acknowledged)
    position = data.draw(st.integers(0, len(whole) + 3))
    after = tail.after(position)
    if after is None:
        assert position > len(whole) or position < acknowledged or len(whole) - position > 40 - 9
    else:
        assert b"".join(after) == whole[position:]
    assert tail.whole == (tail.after(acknowledged) is not None)


def test_more_than_was_sent_is_nothing_that_a_peer_can_have() -> None:
    tail = SentTail()
    tail.add(b"abc")
    with pytest.raises(RemoteProtocolError):
        tail.acknowledge(4)


def test_a_better_way_is_looked_for_soon_and_then_ever_less_often() -> None:
    schedule, now, looks = MoveSchedule(0.0), 0.0, list[float]()
    while now < 7200:
        now = schedule.look_at("home", now)
        looks.append(now)
        schedule.looked(now)
    assert looks[:4] == [*SOON_S, SOON_S[-1] + LATER_S]
    rests = [b - a for a, b in pairwise(looks[3:])]
    assert rests == sorted(rests)
    assert rests[-1] == LONGEST_S
    assert schedule.look_at("elsewhere", 8000.0) == 8000.0 + SOON_S[0]


def test_a_channel_is_saved_only_so_often() -> None:
    schedule = MoveSchedule(0.0)
    assert [schedule.may_rescue(1.0) for _ in range(RESCUES + 2)] == [True] * RESCUES + [False] * 2
    assert schedule.may_rescue(2.0 + RESCUES_S)
