"""Comparing two directories: each lacks nothing afterwards, and ghosts are named."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.anti_entropy import (
    EVERYONE,
    MAX_PEERS,
    DirectoryDifference,
    DirectoryPart,
    DirectoryQuery,
    encode,
    key_of,
    read_difference,
    read_query,
)
from shoal.swarm.directory import LATELY_TOLD, Directory
from shoal.types import PeerId

NOW = 1_000_000.0
SERVED = Served("tiny", "sha256:" + "a" * 64, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)


def said(peer: str, sequence: int = 1) -> Announcement:
    return Announcement(peer, sequence, NOW, NOW + 30, (), (), SERVED)


def held(*announcements: Announcement) -> Directory:
    directory = Directory()
    for a in announcements:
        directory.take(a, f"{a.peer} {a.sequence}".encode(), NOW, NOW)
    return directory


def test_a_newcomer_lacks_everything():
    assert sorted(held(said("a"), said("b")).news(EVERYONE, {}, NOW)) == [b"a 1", b"b 1"]


def test_only_what_is_newer_or_unknown_is_told():
    asker = held(said("a", 1), said("b", 2), said("c", 3))
    teller = held(said("a", 2), said("b", 2), said("c", 1), said("d", 1))
    assert sorted(teller.news(EVERYONE, asker.held(EVERYONE, NOW), NOW)) == [b"a 2", b"d 1"]


def test_the_departed_and_the_doubted_are_named_as_gone_and_not_told_of():
    asker = held(said("a"), said("b"), said("c"), said("d", 2))
    teller = held(said("a"), said("b"), said("c"), said("d", 1))
    teller.drop(PeerId("a"), NOW)
    teller.suspect(PeerId("b"), NOW + 5)
    teller.drop(PeerId("d"), NOW)
    gone = teller.gone(asker.held(EVERYONE, NOW))
    assert {a.peer for a in asker.among(gone)} == {"a", "b"}
    assert teller.news(EVERYONE, {}, NOW) == [b"c 1"]


def test_who_has_gone_lately_is_named_whatever_was_asked_for_and_not_without_bound():
    names = [f"peer {number}" for number in range(2 * LATELY_TOLD)]
    teller = held(*map(said, names))
    for seconds, name in enumerate(names):
        teller.drop(PeerId(name), NOW + seconds)
    last = names[LATELY_TOLD:]
    assert {a.peer for a in held(*map(said, names)).among(teller.gone({}))} == set(last)
    assert len(teller.gone({key_of(PeerId(names[0])): 1})) == LATELY_TOLD + 1


@given(st.sets(st.text(min_size=1), max_size=50), st.integers(1, 9))
def test_the_parts_are_the_whole(peers, of):
    parts = [DirectoryPart(of, index) for index in range(of)]
    for peer in peers:
        assert sum(part.has(key_of(PeerId(peer))) for part in parts) == 1


def test_what_is_sent_is_read():
    question = DirectoryQuery(DirectoryPart(3, 2), {b"12345678": 7})
    assert read_query(encode(question)) == question
    difference = DirectoryDifference([b"raw"], {b"12345678": 7}, 1.5)
    assert read_difference(encode(difference)) == difference


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",
        msgspec.msgpack.encode([[0, 0], {}]),
        msgspec.msgpack.encode([[1, 0], {b"short": 1}]),
        msgspec.msgpack.encode([[1, 0], {b"12345678": -1}]),
        msgspec.msgpack.encode([[1, 0], {n.to_bytes(8, "big"): 1 for n in range(MAX_PEERS + 1)}]),
        msgspec.msgpack.encode({"not": "a list"}),
    ],
)
def test_what_is_no_question_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        read_query(data)


@pytest.mark.parametrize("data", [b"", b"\xc1", msgspec.msgpack.encode([[b"x" * 9000], [], 0.0])])
def test_what_is_no_answer_is_refused(data):
    with pytest.raises(RemoteProtocolError):
        read_difference(data)
