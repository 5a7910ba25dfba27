"""Which sessions a node that pauses may let go: those that others can take, all of them together."""

from __future__ import annotations

from shoal.node.owner.handover import HeldSession, takable
from shoal.routing.prices import Candidate
from shoal.types import PeerId, SessionId, Span

BLOCKS = 8


def held(name: str, tokens: int = 100, beside: str = "", span: Span | None = None) -> HeldSession:
    neighbours = frozenset(PeerId(peer) for peer in beside.split())
    return HeldSession(SessionId(name.encode()), span or Span(2, 6), tokens, neighbours)


def other(name: str, start: int, end: int, free: int = 1000) -> Candidate:
    return Candidate(PeerId(name), Span(start, end), free)


def test_a_session_goes_where_another_peer_serves_its_blocks() -> None:
    assert takable([held("a")], [other("x", 0, 8)], BLOCKS) == [b"a"]


def test_or_where_several_do_between_them() -> None:
    assert takable([held("a")], [other("x", 0, 4), other("y", 3, 8)], BLOCKS) == [b"a"]


def test_it_stays_where_nobody_serves_one_of_its_blocks() -> None:
    assert takable([held("a")], [], BLOCKS) == []
    assert takable([held("a")], [other("x", 0, 5), other("y", 6, 8)], BLOCKS) == []


def test_it_stays_where_those_who_do_have_no_room_or_have_paused_too() -> None:
    assert takable([held("a", tokens=101)], [other("x", 0, 8, free=100)], BLOCKS) == []
    assert takable([held("a")], [other("x", 0, 8, free=0)], BLOCKS) == []


def test_a_hop_beside_this_one_takes_it_with_its_own_blocks_in_one_span_or_not_at_all() -> None:
    assert takable([held("a", beside="x y")], [other("x", 0, 8)], BLOCKS) == [b"a"]
    assert takable([held("a", beside="x y")], [other("x", 0, 4), other("z", 4, 8)], BLOCKS) == []
    assert takable([held("a", beside="x y")], [other("x", 0, 8, free=99)], BLOCKS) == []


def test_of_many_sessions_as_many_go_as_there_is_room_for() -> None:
    sessions = [held(name, tokens=40) for name in "abcd"]
    assert takable(sessions, [other("x", 0, 8, free=100)], BLOCKS) == [b"a", b"b"]
    assert takable(sessions, [other("x", 0, 8, free=100), other("y", 0, 8, free=50)], BLOCKS) == [
        b"a",
        b"b",
        b"c",
    ]


def test_one_that_is_too_large_does_not_keep_smaller_ones() -> None:
    sessions = [held("large", tokens=500), held("small", tokens=50)]
    assert takable(sessions, [other("x", 0, 8, free=100)], BLOCKS) == [b"small"]
