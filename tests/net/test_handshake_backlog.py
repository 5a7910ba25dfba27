"""Who may begin a handshake, and who makes room: decided without sockets, by a clock of the test's."""

from __future__ import annotations

import random

import pytest
import trio

from shoal.net.handshake_backlog import HandshakeBacklog, network_of
from shoal.net.handshakes import Handshakes


def backlog(
    waiting: int = 4, handshakes: int = 3, rate: float = 10.0, burst: int = 2
) -> HandshakeBacklog[str]:
    return HandshakeBacklog(waiting=waiting, handshakes=handshakes, rate=rate, burst=burst)


def spoken(log: HandshakeBacklog[str], *names: str, host: str = "192.0.2.1") -> None:
    for name in names:
        log.arrive(name, host)
        log.speak(name, host)


@pytest.mark.parametrize(
    ("host", "network"),
    [
        ("192.0.2.77", "192.0.2.0/24"),
        ("::ffff:192.0.2.77", "192.0.2.0/24"),
        ("2001:db8:0:12ff::1", "2001:db8:0:1200::/56"),
        ("fe80::1%eth0", "fe80::/56"),
        ("", ""),
    ],
)
def test_a_network_is_what_one_subscriber_has(host: str, network: str) -> None:
    assert network_of(host) == network


def test_who_has_said_nothing_begins_nothing() -> None:
    log = backlog()
    log.arrive("silent", "192.0.2.1")
    assert log.begin(0.0) == (None, None)
    assert log.next_s(0.0) is None


def test_who_has_spoken_begins_at_once_while_it_is_quiet() -> None:
    log = backlog()
    spoken(log, "a")
    assert log.next_s(0.0) == 0.0
    assert log.begin(0.0) == ("a", None)


def test_of_those_that_wait_the_oldest_of_the_fullest_network_makes_room() -> None:
    log = backlog(waiting=4)
    assert log.arrive("other", "198.51.100.1") is None
    assert [log.arrive(name, f"192.0.2.{n}") for n, name in enumerate("abc")] == [None] * 3
    assert log.arrive("d", "192.0.2.9") == "a"
    assert log.arrive("e", "198.51.100.1") == "b"
    assert len(log) == 4


def test_handshakes_begin_at_a_bounded_rate() -> None:
    log = backlog(burst=2, rate=10.0)
    spoken(log, "a", "b", "c")
    assert [log.begin(0.0)[0] for _ in range(3)] == ["c", "b", None]
    assert log.next_s(0.0) == pytest.approx(0.1)
    assert log.begin(0.09)[0] is None
    assert log.begin(0.1)[0] == "a"


def test_a_quiet_time_allows_a_burst_and_no_more() -> None:
    log = backlog(burst=2, waiting=9)
    spoken(log, *"abcd")
    assert [log.begin(1000.0)[0] for _ in range(3)] == ["d", "c", None]


def test_the_newest_of_a_network_goes_first_and_networks_take_turns() -> None:
    log = backlog(waiting=9, burst=9, handshakes=9)
    spoken(log, "a1", "a2", host="192.0.2.1")
    spoken(log, "b1", "b2", host="198.51.100.1")
    assert [log.begin(0.0)[0] for _ in range(4)] == ["a2", "b2", "a1", "b1"]


def test_when_too_many_are_under_way_the_oldest_ends() -> None:
    log = backlog(waiting=9, burst=9, handshakes=2)
    spoken(log, *"abc")
    assert [log.begin(0.0) for _ in range(3)] == [("c", None), ("b", None), ("a", "c")]


def test_who_has_left_is_forgotten_wherever_it_was() -> None:
    log = backlog(waiting=9)
    spoken(log, "begun", "turn")
    log.arrive("silent", "192.0.2.1")
    assert log.begin(0.0)[0] == "turn"
    for name in ("silent", "begun", "turn", "never"):
        log.leave(name)
    assert len(log) == 0
    assert log.begin(0.0) == (None, None)


def test_who_made_room_before_it_spoke_begins_nothing() -> None:
    log = backlog(waiting=1)
    log.arrive("a", "192.0.2.1")
    assert log.arrive("b", "192.0.2.1") == "a"
    log.speak("a", "192.0.2.1")
    assert log.begin(0.0) == (None, None)


@pytest.mark.parametrize(
    ("host", "crowd_per_s"), [("192.0.2.7", 100), ("198.51.100.7", 10_000)], ids=["same network", "another"]
)
@pytest.mark.parametrize("seed", range(20))
def test_a_crowd_keeps_no_newcomer_waiting(host: str, crowd_per_s: int, seed: int) -> None:
    """The crowd has filled every place, and comes again as fast as it is let in."""
    log: HandshakeBacklog[str] = HandshakeBacklog()
    chance, crowd = random.Random(seed), 0
    for crowd in range(2000):
        spoken(log, f"crowd {crowd}")
    while log.begin(0.0)[0] is not None:
        pass
    for millisecond in range(1, 2000):
        if millisecond == 50:
            spoken(log, "newcomer", host=host)
        for _ in range(crowd_per_s // 1000 or (chance.random() < crowd_per_s / 1000)):
            crowd += 1
            spoken(log, f"crowd {crowd}")
        if log.begin(millisecond / 1000)[0] == "newcomer":
            return
    pytest.fail("two seconds, and the newcomer still waits")


async def test_a_socket_that_is_gone_before_its_turn_leaves_no_place_taken() -> None:
    """Some systems refuse to set anything of a socket whose peer has hung up."""
    raw, other = trio.socket.socketpair()
    stream, handshakes = trio.SocketStream(raw), Handshakes(34)
    raw.close()
    with pytest.raises(OSError, match="descriptor"):
        await handshakes.wait_turn(stream)
    assert len(handshakes) == 0
    other.close()
