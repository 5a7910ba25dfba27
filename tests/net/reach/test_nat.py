"""What observers say of our address, and what is believed of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.net.reach.nat import (
    OBSERVERS_LIMIT,
    Observation,
    add_observation,
    believed_address,
    best_kind,
    is_confirmed,
    may_meet,
    nat_kind,
)

HOME = "/ip4/198.41.0.4/tcp/30001"
OTHER_PORT = "/ip4/198.41.0.4/tcp/30002"
ELSEWHERE = "/ip4/8.8.8.8/tcp/53"
LAN = "/ip4/192.168.1.7/tcp/4002"
ONE, NEAR_ONE, TWO, THREE = "9.9.9.9", "9.9.9.10", "1.1.1.1", "4.4.4.4"


def seen(*words: tuple[str, str]) -> tuple[Observation, ...]:
    held: tuple[Observation, ...] = ()
    for observer, address in words:
        held = add_observation(held, Observation(observer, address))
    return held


def test_two_observers_on_different_networks_make_an_address_believed():
    assert believed_address(seen((ONE, HOME), (TWO, HOME))) == HOME
    assert nat_kind(seen((ONE, HOME), (TWO, HOME)), ()) == "cone"


def test_one_observer_alone_is_not_believed_and_tells_nothing_of_the_router():
    assert believed_address(seen((ONE, HOME))) is None
    assert nat_kind(seen((ONE, HOME)), ()) == "unknown"
    assert nat_kind((), ()) == "unknown"


def test_of_two_ip_versions_the_better_one_counts():
    assert best_kind(["symmetric", "cone"]) == "cone"
    assert best_kind(["unknown", "symmetric"]) == "unknown"
    assert best_kind([]) == "symmetric"


def test_what_a_router_says_of_itself_is_borne_out_by_all_who_can_and_at_most_two():
    assert not is_confirmed("198.41.0.4", ())
    assert is_confirmed("198.41.0.4", seen((ONE, HOME)))
    assert not is_confirmed("198.41.0.4", seen((ONE, HOME), (TWO, ELSEWHERE)))
    assert not is_confirmed("198.41.0.4", seen((ONE, HOME), (NEAR_ONE, HOME), (TWO, ELSEWHERE)))
    assert is_confirmed("198.41.0.4", seen((ONE, HOME), (TWO, ELSEWHERE), (THREE, OTHER_PORT)))
    # How we are seen by IPv6 says nothing of it.
    assert is_confirmed("198.41.0.4", seen((ONE, HOME), ("2a10:20::1", "/ip6/2a10:21::1/tcp/1")))


def test_two_machines_of_one_network_are_one_observer():
    assert believed_address(seen((ONE, HOME), (NEAR_ONE, HOME))) is None


def test_a_lie_of_one_changes_nothing_where_two_others_agree():
    lied_to = seen((THREE, ELSEWHERE), (ONE, HOME), (TWO, HOME))
    assert believed_address(lied_to) == HOME
    assert nat_kind(lied_to, ()) == "cone"


def test_an_address_that_our_provider_has_changed_is_believed_once_two_have_seen_the_new_one():
    old = [(observer, HOME) for observer in (ONE, TWO, THREE, "5.5.5.5", "6.6.6.6")]
    assert believed_address(seen(*old, (ONE, ELSEWHERE))) == HOME
    assert believed_address(seen(*old, (ONE, ELSEWHERE), (TWO, ELSEWHERE))) == ELSEWHERE


@given(st.permutations([(ONE, HOME), (TWO, HOME), (THREE, ELSEWHERE)]))
def test_the_order_in_which_observers_speak_does_not_matter(words: list[tuple[str, str]]):
    assert believed_address(seen(*words)) == HOME


def test_observers_who_see_different_ports_mean_a_symmetric_router():
    assert nat_kind(seen((ONE, HOME), (TWO, OTHER_PORT)), ()) == "symmetric"
    assert believed_address(seen((ONE, HOME), (TWO, OTHER_PORT))) is None


def test_to_be_seen_at_an_interface_of_ours_means_that_there_is_no_router():
    assert nat_kind(seen((ONE, HOME)), {HOME}) == "none"


def test_what_is_no_public_address_counts_for_nothing():
    for word in (LAN, "/ip4/127.0.0.1/tcp/1", "", "/dns4/example.org/tcp/1", "nonsense"):
        assert believed_address(seen((ONE, word), (TWO, word))) is None
        assert nat_kind(seen((ONE, word), (TWO, word)), {LAN}) == "unknown"


def test_a_network_has_one_voice_and_the_newest_word_of_it_counts():
    assert (
        believed_address(seen((ONE, HOME), (TWO, HOME), (ONE, OTHER_PORT), (TWO, OTHER_PORT))) == OTHER_PORT
    )


def test_observations_are_bounded():
    many = seen(*((f"{n}.1.1.1", HOME) for n in range(1, 100)))
    assert len(many) == OBSERVERS_LIMIT


def test_a_symmetric_router_can_be_met_only_by_a_peer_that_has_none():
    assert may_meet("cone", "cone")
    assert may_meet("none", "symmetric") and may_meet("symmetric", "none")
    assert not may_meet("cone", "symmetric")
    assert not may_meet("symmetric", "symmetric")
    assert may_meet("unknown", "cone")
