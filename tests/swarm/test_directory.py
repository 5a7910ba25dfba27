"""The directory holds who is there now: the newest word of each, and nobody after the last word expired."""

from __future__ import annotations

import msgspec
import pytest

from shoal.errors import RemoteProtocolError
from shoal.swarm.announcement import CLOCK_SKEW_S, MAX_LIFETIME_S, Announcement, Served
from shoal.swarm.anti_entropy import EVERYONE, key_of
from shoal.swarm.coverage import coverage
from shoal.swarm.directory import Directory
from shoal.swarm.failure.departed import STRANGERS_KEPT
from shoal.types import Digest, Span

NOW = 1_000_000.0
DIGEST = Digest("sha256:" + "a" * 64)
OTHER = "sha256:" + "b" * 64


def said(peer: str, sequence: int = 1, start: int = 0, end: int = 10, **changes) -> Announcement:
    served = Served("tiny", DIGEST, 30, 576, 2048, 49152, start, end, "fp32", 4096, 4096, 0, 2.5)
    first = Announcement(peer, sequence, NOW, NOW + 30, (), (), served)
    return msgspec.structs.replace(first, **changes)


def held(*announcements: Announcement) -> Directory:
    directory = Directory()
    for announcement in announcements:
        directory.take(announcement, b"raw of " + announcement.peer.encode(), NOW, NOW)
    return directory


def test_a_later_word_replaces_an_earlier_one():
    directory = held(said("a"), said("a", 2, end=20))
    assert [a.served.span for a in directory.alive(NOW)] == [Span(0, 20)]


def test_a_replay_is_refused():
    with pytest.raises(RemoteProtocolError, match="older"):
        held(said("a", 2)).take(said("a", 1), b"", NOW, NOW)


def test_the_same_word_again_is_no_news():
    assert held(said("a")).take(said("a"), b"", NOW, NOW) is False


def test_a_dead_peer_is_gone_after_one_expiry():
    directory = held(said("a"))
    assert len(directory.alive(NOW + 29.9)) == 1
    assert directory.alive(NOW + 30) == []


def test_a_word_that_came_late_lives_no_longer():
    directory = Directory()
    directory.take(said("a"), b"", NOW + 20, NOW + 20)
    assert directory.alive(NOW + 30) == []


def test_a_clock_ahead_of_ours_makes_no_ghost():
    directory = Directory()
    directory.take(said("a", issued=NOW + 25, expires=NOW + 55), b"", NOW, NOW)
    assert directory.alive(NOW + 30) == []


def test_a_peer_that_leaves_is_gone_at_once_and_its_old_words_stay_refused():
    directory = held(said("a", 1), said("a", 2, served=None))
    assert directory.alive(NOW) == []
    with pytest.raises(RemoteProtocolError, match="older"):
        directory.take(said("a", 1), b"", NOW, NOW)


def test_a_dropped_peer_comes_back_with_its_next_word():
    directory = held(said("a", 1))
    directory.drop("a", NOW)
    assert directory.alive(NOW) == []
    directory.take(said("a", 2), b"", NOW, NOW)
    assert len(directory.alive(NOW)) == 1


class Listener:
    """A directory, and how much of what a peer says it listens to, as a member does."""

    def __init__(self, every_s: float) -> None:
        self.directory = Directory()
        self._every_s = every_s

    def hears(self, announcement: Announcement, now: float) -> bool:
        raw = msgspec.msgpack.encode(announcement)
        listened = self.directory.may_speak(announcement, raw, now, self._every_s)
        if listened:
            self.directory.take(announcement, raw, now, now, self._every_s)
        return listened


def test_who_is_suspected_again_and_again_and_refutes_it_each_time_is_never_gone():
    every_s, settled_s, gone_s = 80.0, 3.0, 12.0  # as in a swarm of a thousand
    listener, at = Listener(every_s), NOW
    directory = listener.directory
    assert listener.hears(said("a", expires=NOW + 1000), at)
    for sequence in range(1, 40):
        at += settled_s
        assert directory.may_suspect("a", sequence, at, settled_s)
        directory.suspect("a", at + gone_s)
        at += 0.2
        assert listener.hears(said("a", sequence + 1, issued=at, expires=at + 1000), at)
    # Nothing of its own words is used up.
    last = [listener.hears(said("a", 41 + n, issued=at, expires=at + 1000), at) for n in range(5)]
    assert last == [True] * 4 + [False]


def test_another_word_with_the_number_of_the_newest_is_not_listened_to():
    listener = Listener(10.0)
    assert listener.hears(said("a"), NOW)
    assert not listener.hears(said("a", agent="another"), NOW)
    assert listener.hears(said("a"), NOW)


def goodbye(peer: str, sequence: int) -> Announcement:
    return said(peer, sequence, served=None)


def test_goodbyes_of_one_peer_are_listened_to_as_often_as_its_other_words():
    listener = Listener(100.0)
    assert [listener.hears(goodbye("a", number), NOW) for number in range(1, 9)] == [True] * 5 + [False] * 3
    assert listener.hears(goodbye("a", 5), NOW)  # the last one, on another topic
    assert not listener.hears(msgspec.structs.replace(goodbye("a", 5), agent="another"), NOW)
    assert listener.hears(said("a", 9, issued=NOW + 25, expires=NOW + 225), NOW + 100)
    assert not listener.hears(goodbye("a", 10), NOW + 100)


def test_who_leaves_and_comes_back_again_and_again_may_say_no_more_than_others():
    listener = Listener(100.0)
    words = [(said if number % 2 else goodbye)("a", number) for number in range(1, 9)]
    assert [listener.hears(word, NOW) for word in words] == [True] * 5 + [False] * 3


def test_whose_words_end_at_once_may_say_no_more_than_others():
    listener = Listener(100.0)
    words = [said("a", n, issued=NOW + n, expires=NOW + n + 0.5) for n in range(1, 9)]
    assert [listener.hears(word, word.issued) for word in words] == [True] * 5 + [False] * 3


@pytest.mark.parametrize("lost", [False, True])
def test_a_goodbye_is_remembered_while_the_word_before_it_could_be_played_again(lost):
    ahead = NOW + CLOCK_SKEW_S
    word = said("a", issued=ahead, expires=ahead + MAX_LIFETIME_S)
    directory = held(word)
    if lost:
        directory.drop("a", NOW)
    directory.take(goodbye("a", 2), b"", NOW, NOW)  # which holds for 30 s
    for at in (NOW + 41, word.expires - 0.1):
        with pytest.raises(RemoteProtocolError, match="older"):
            directory.take(word, b"", at, at)


def test_who_was_suspected_and_is_gone_is_back_when_it_says_that_it_lives():
    listener = Listener(100.0)
    for number in range(1, 6):
        assert listener.hears(said("a", number), NOW)
    listener.directory.suspect("a", NOW + 12)
    listener.directory.expire(NOW + 13)
    assert listener.directory.is_lost("a")
    assert listener.hears(said("a", 6, expires=NOW + 60), NOW + 13)
    assert not listener.hears(said("a", 7, expires=NOW + 60), NOW + 13)


def test_goodbyes_of_strangers_push_out_nobody_who_was_here_and_are_told_to_who_holds_them():
    directory = held(said("a"))
    directory.drop("a", NOW)
    for number in range(2 * STRANGERS_KEPT):
        directory.take(goodbye(f"evil {number}", 1), b"", NOW, NOW)
    assert [word.peer for word in directory.lost()] == ["a"]
    assert directory.gone({}) == {key_of("a"): 1}
    last = key_of(f"evil {2 * STRANGERS_KEPT - 1}")
    assert directory.gone({last: 0, key_of("evil 0"): 0}) == {key_of("a"): 1, last: 1}


def test_it_is_bounded_and_those_of_the_largest_crowd_find_no_place():
    directory = Directory(limit=2)
    directory.take(said("a"), b"", NOW, NOW)
    directory.take(said("b"), b"", NOW, NOW)
    with pytest.raises(RemoteProtocolError, match="full"):
        directory.take(said("c"), b"", NOW, NOW)
    assert directory.take(said("a", 2), b"", NOW, NOW)
    assert directory.take(said("c", expires=NOW + 100), b"", NOW + 31, NOW + 31)


def test_two_versions_of_a_model_are_two_models():
    served = msgspec.structs.replace(said("b").served, digest=OTHER)
    directory = held(said("a"), said("b", served=served))
    assert [a.peer for a in directory.serving(DIGEST, NOW)] == ["a"]
    assert {shape.digest for shape in directory.models(NOW)} == {DIGEST, OTHER}


def test_a_newcomer_is_told_what_was_received():
    assert sorted(held(said("a"), said("b")).news(EVERYONE, {}, NOW)) == [b"raw of a", b"raw of b"]


def test_coverage_counts_peers_by_block():
    assert coverage([Span(0, 10), Span(5, 12)], 30)[4:13] == [1, 2, 2, 2, 2, 2, 1, 1, 0]


def test_who_serves_in_another_format_is_left_out_where_one_is_asked_for():
    directory = held(said("a"), said("b", start=5, end=12))
    format = said("a").served.format
    assert [a.peer for a in directory.serving(DIGEST, NOW, format)] == ["a", "b"]
    assert list(directory.serving(DIGEST, NOW, "bf16")) == []
