"""Who has how much of a node, and who makes room: decided without a node, by a clock of the test's."""

from __future__ import annotations

import itertools
import random

import pytest

from shoal.errors import Busy
from shoal.node.fair_share import (
    LEAST_TOKENS,
    PATIENCE_S,
    PAUSED_S,
    QUIET_S,
    UNUSED_S,
    Asker,
    SessionShare,
    check_fits,
    make_place,
    make_room,
    offered,
)
from shoal.types import PeerId, SessionId

NOW = 1000.0
TOTAL = 8192
NEWCOMER = Asker(PeerId("newcomer"), "203.0.113.9")


def held(
    name: str, tokens: int, *, host: str = "192.0.2.1", quiet_s: float = 0.0, **more: object
) -> SessionShare:
    """A session of a client of the same name; ``name/2`` is that client's second."""
    peer = PeerId(name.partition("/")[0])
    known: dict[str, object] = {"limit": TOTAL, "stepped": tokens > 0, "since": NOW - quiet_s} | more
    return SessionShare(session=SessionId(name.encode()), peer=peer, host=host, tokens=tokens, **known)  # type: ignore[arg-type]


def room(sessions: list[SessionShare], asker: Asker, tokens: int) -> list[str]:
    return [s.decode() for s in make_room(sessions, asker, tokens, total=TOTAL, now=NOW)]


def place(sessions: list[SessionShare], asker: Asker, places: int) -> list[str]:
    return [s.decode() for s in make_place(sessions, asker, places=places, now=NOW)]


# --- nobody else wants anything ---------------------------------------------------------------------------


def test_to_ask_for_a_session_takes_nothing_from_anybody() -> None:
    hogs = [held(f"hog{n}", 0) for n in range(60)]
    assert offered(hogs, total=TOTAL, now=NOW) == TOTAL
    check_fits(hogs, NEWCOMER, TOTAL, total=TOTAL, now=NOW)
    assert room(hogs, NEWCOMER, TOTAL) == []


def test_one_client_may_have_all_there_is_in_many_sessions_while_nobody_else_wants_it() -> None:
    mine = [held(f"me/{n}", 1000) for n in range(7)]
    me = Asker(PeerId("me"), "192.0.2.1")
    assert room(mine, me, TOTAL - 7000) == []
    with pytest.raises(Busy):  # its own sessions at work do not end each other
        room(mine, me, TOTAL - 6999)


def test_more_than_there_is_is_nobodys() -> None:
    with pytest.raises(Busy) as refused:
        check_fits([], NEWCOMER, TOTAL + 1, total=TOTAL, now=NOW)
    assert refused.value.tokens_free == TOTAL
    assert refused.value.retry_after_s > 0


# --- what is quiet makes room -----------------------------------------------------------------------------


def test_the_largest_that_is_quiet_goes_first_and_no_more_than_needed() -> None:
    sessions = [
        held("small", 1000, host="192.0.2.1", quiet_s=600),
        held("large", 1500, host="198.51.100.1", quiet_s=10),
        held("working", 5692, host="100.64.0.1"),
    ]
    assert room(sessions, NEWCOMER, 1400) == ["large"]
    assert sorted(room(sessions, NEWCOMER, 2000)) == ["large", "small"]


def test_a_conversation_that_pauses_keeps_its_kv_from_who_has_had_more() -> None:
    """However many identities a host has, and however few tokens each holds."""
    pausing = held("person", 3000, host="198.51.100.1", quiet_s=300)
    hogs = [held(f"hog{n}", 173) for n in range(30)]
    for host in ("192.0.2.1", "192.0.2.200"):  # the same, and one beside it in the /24
        assert "person" not in room([pausing, *hogs], Asker(PeerId("hog99"), host), 64)
    with pytest.raises(Busy):
        room([pausing, *hogs], Asker(PeerId("hog99"), "192.0.2.1"), 1000)


def test_many_that_have_paused_for_minutes_keep_nobody_out() -> None:
    for quiet_s, ended in ((60, 0), (PAUSED_S + 1, 1)):
        crowd = [held(f"c{n}", 512, host=f"198.51.{n}.1", quiet_s=quiet_s) for n in range(16)]
        assert offered(crowd, total=TOTAL, now=NOW) == (TOTAL // 2 if ended else 512)
        if ended:
            assert len(room(crowd, NEWCOMER, TOTAL // 2)) == 8
        with pytest.raises(Busy):
            room(crowd, NEWCOMER, TOTAL // 2 + 1 if ended else 513)


def test_a_quiet_hog_makes_room_for_a_long_prompt() -> None:
    assert room([held("hog", TOTAL, quiet_s=5)], NEWCOMER, 8000) == ["hog"]


def test_of_ones_own_the_quiet_ones_go_whatever_their_size() -> None:
    mine = [held("me/1", 8000), held("me/2", 192, quiet_s=5)]
    assert room(mine, Asker(PeerId("me"), "192.0.2.1", SessionId(b"me/1")), 100) == ["me/2"]


@pytest.mark.parametrize(
    ("session", "quiet"),
    [
        (held("h", 10, quiet_s=QUIET_S - 0.1), False),
        (held("h", 10, quiet_s=QUIET_S + 0.1), True),
        (held("h", 10, quiet_s=60, computing=True), False),
        (held("h", 0, quiet_s=UNUSED_S - 0.1), False),
        (held("h", 0, quiet_s=UNUSED_S + 0.1), True),
        (held("h", 10, quiet_s=7, pause_s=4), False),  # pieces of a long prompt, each of which takes 4 s
        (held("h", 10, quiet_s=8.1, pause_s=4), True),
        (held("h", 10, quiet_s=PATIENCE_S + 0.1, pause_s=300), True),
    ],
)
def test_what_quiet_is(session: SessionShare, quiet: bool) -> None:
    assert session.quiet(NOW) == quiet


# --- what is at work --------------------------------------------------------------------------------------


def test_a_newcomer_gets_in_beside_a_hog_that_steps_now_and_then() -> None:
    assert room([held("slow", TOTAL, quiet_s=2)], NEWCOMER, 600) == ["slow"]


def test_beside_two_hogs_it_is_the_larger_that_makes_room() -> None:
    two = [held("a", 4000, host="192.0.2.1"), held("b", 4192, host="198.51.100.1")]
    assert room(two, NEWCOMER, 1000) == ["b"]


def test_who_has_much_ends_nobodys_work() -> None:
    sessions = [held("working", 4096, host="198.51.100.1"), held("hog", 4096)]
    with pytest.raises(Busy):
        room(sessions, Asker(PeerId("hog"), "192.0.2.1", SessionId(b"hog")), 16)
    with pytest.raises(Busy):
        room(sessions, NEWCOMER, TOTAL // 3)  # nor a newcomer that wants much at once


def test_on_one_host_a_newcomer_gets_in_beside_many_identities_at_work() -> None:
    hogs = [held(f"hog{n}", 128) for n in range(64)]
    neighbour = Asker(PeerId("neighbour"), "192.0.2.1")
    assert len(room(hogs, neighbour, LEAST_TOKENS)) == 2
    with pytest.raises(Busy):
        room(hogs, neighbour, LEAST_TOKENS + 1)


def test_hosts_of_one_network_share_what_a_network_has() -> None:
    crowd = [held(f"hog{n}", 400, host=f"192.0.2.{n}") for n in range(20)]
    neighbour = held("neighbour", 192, host="198.51.100.1", quiet_s=60)
    with pytest.raises(Busy):
        room([*crowd, neighbour], Asker(PeerId("hog0"), "192.0.2.0", SessionId(b"hog0")), 16)
    assert len(room([*crowd, held("neighbour", 192, host="198.51.100.1")], NEWCOMER, 400)) == 1


def test_those_whose_host_is_not_known_are_one_network() -> None:
    relayed = [held(f"hog{n}", 256, host="") for n in range(31)]
    quiet = held("quiet", 256, host="198.51.100.1", quiet_s=60)
    ended = room([*relayed, quiet], Asker(PeerId("other"), ""), 256)
    assert len(ended) == 1
    assert ended != ["quiet"]


# --- places -----------------------------------------------------------------------------------------------


def test_places_of_sessions_that_were_never_used_go_first_then_of_those_that_lose_least() -> None:
    sessions = [
        held("large", 4000, host="198.51.100.1", quiet_s=600),
        held("small", 16, host="198.51.100.2", quiet_s=4),
        held("unused", 0, host="198.51.100.3", quiet_s=2),
    ]
    assert place(sessions, NEWCOMER, 4) == []
    assert place(sessions, NEWCOMER, 3) == ["unused"]
    assert place(sessions[:2], NEWCOMER, 2) == ["small"]


def test_a_newcomer_gets_a_place_when_one_host_has_all_of_them_at_work() -> None:
    one_identity = [held(f"hog/{n}", 16) for n in range(64)]
    many = [held(f"hog{n}", 16) for n in range(64)]
    for hogs in (one_identity, many):
        assert len(place(hogs, NEWCOMER, 64)) == 1
        assert len(place(hogs, Asker(PeerId("neighbour"), "192.0.2.1"), 64)) == 1
    with pytest.raises(Busy) as refused:
        place(one_identity, Asker(PeerId("hog"), "192.0.2.1"), 64)
    assert refused.value.retry_after_s > 0


# --- what is said before --------------------------------------------------------------------------------


def test_a_session_is_refused_where_those_at_work_will_need_the_room() -> None:
    """As many as would double: so nobody is let in to be thrown out in the middle of an answer."""
    growing = [held(f"c{n}", 1000, host=f"198.51.{n}.1", limit=1500) for n in range(5)]
    check_fits(growing, NEWCOMER, TOTAL - 7500, total=TOTAL, now=NOW)
    with pytest.raises(Busy) as refused:
        check_fits(growing, NEWCOMER, TOTAL - 7500 + 16, total=TOTAL, now=NOW)
    assert refused.value.tokens_free == offered(growing, total=TOTAL, now=NOW) == TOTAL - 7500


def test_a_full_node_offers_what_is_quiet_and_to_a_newcomer_always_something() -> None:
    assert offered([held("hog", TOTAL, quiet_s=5)], total=TOTAL, now=NOW) == TOTAL
    assert offered([held("hog", TOTAL)], total=TOTAL, now=NOW) == TOTAL // 4


def test_what_is_offered_is_given_and_none_ends_in_vain() -> None:
    """Whatever the sessions: a newcomer gets what was offered, and every ended session was needed."""
    chance = random.Random(7)
    for _ in range(300):
        sessions: list[SessionShare] = []
        left = TOTAL
        for n in itertools.count():
            tokens = min(left, 16 * chance.randrange(1, 120))
            if not tokens or n > 40:
                break
            left -= tokens
            host = f"192.0.{chance.randrange(5)}.{chance.randrange(3)}"
            name = f"p{chance.randrange(20)}/{n}"
            sessions.append(held(name, tokens, host=host, quiet_s=chance.choice([0, 1, 4, 60]), limit=tokens))
        wanted = offered(sessions, total=TOTAL, now=NOW)
        ended = make_room(sessions, NEWCOMER, wanted, total=TOTAL, now=NOW)
        stays = [s.tokens for s in sessions if s.session not in ended]
        assert TOTAL - sum(stays) >= wanted
        quietest = [s for s in sessions if s.session in ended and not s.quiet(NOW)]
        assert not quietest or all(s.session in ended for s in sessions if s.quiet(NOW))
