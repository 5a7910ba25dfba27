"""Whom a full directory forgets (docs/hostile.md 16): a flood of identities costs the honest nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from random import Random

import msgspec
import pytest

from shoal.errors import RemoteProtocolError
from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.directory import Directory
from shoal.swarm.eviction import peers_to_evict, stated_network
from shoal.types import Digest, PeerAddress, PeerId

NOW = 1_000_000.0
DIGEST = Digest("sha256:" + "a" * 64)


@dataclass
class Known:
    network: str
    met: float


def known(**guests: tuple[str, float]) -> dict[PeerId, Known]:
    return {PeerId(name): Known(*guest) for name, guest in guests.items()}


def said(peer: str, host: str, sequence: int = 1) -> Announcement:
    served = Served("tiny", DIGEST, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)
    return Announcement(peer, sequence, NOW, NOW + 30, (f"/ip4/{host}/tcp/1",), (), served)


@pytest.mark.parametrize(
    ("addresses", "network"),
    [
        (("/ip4/8.8.4.4/tcp/1",), "8.8.4.0/24"),
        (("/ip6/2001:db8:1:2::3/tcp/1",), "2001:db8:1::/48"),
        (("/dns4/x.example/tcp/1", "/ip4/10.1.2.3/tcp/1"), "10.1.2.0/24"),
        (("nonsense",), ""),
        ((), ""),
    ],
)
def test_a_network_is_what_the_first_address_is_in(addresses: tuple[str, ...], network: str) -> None:
    assert stated_network(PeerAddress(PeerId("a"), addresses)) == network


def test_the_newest_of_the_largest_crowd_goes() -> None:
    guests = known(old=("a", 1), new=("a", 2), lone=("b", 3))
    assert peers_to_evict(guests, (), "c") == ["new"]
    assert peers_to_evict(guests, ("new",), "c")[0] in ("lone", "old")


def test_one_more_of_the_largest_crowd_does_not_come_in() -> None:
    assert peers_to_evict(known(old=("a", 1), new=("a", 2), lone=("b", 3)), (), "a") == []


def test_several_that_go_at_once_are_those_who_would_go_one_after_another() -> None:
    guests = known(a=("x", 1), b=("x", 2), c=("x", 3), d=("y", 4), e=("y", 5), f=("z", 6))
    assert peers_to_evict(guests, (), "c", count=3) == ["c", "e", "b"] or peers_to_evict(
        guests, (), "c", count=3
    ) == ["c", "b", "e"]
    assert len(peers_to_evict(guests, (), "c", count=100)) == 3  # the first of each network stay


def test_where_everybody_is_alone_the_last_to_come_goes() -> None:
    assert peers_to_evict(known(old=("a", 1), new=("b", 2)), (), "c") == ["new"]


def test_of_many_that_are_alone_some_of_the_newer_half_go_by_chance() -> None:
    guests = known(**{f"p{number}": (f"n{number}", number) for number in range(100)})
    gone = {peers_to_evict(guests, (), "new", chance=Random(seed))[0] for seed in range(50)}
    assert len(gone) > 20  # not always the last to come: it would never stay
    assert gone <= {f"p{number}" for number in range(50, 100)}


def test_friends_stay_though_nobody_else_can_come() -> None:
    assert peers_to_evict(known(old=("a", 1)), ("old",), "c") == []


def test_after_a_flood_the_honest_are_there_and_more_can_come() -> None:
    directory = Directory(limit=50)
    for number in range(10):
        directory.take(said(f"honest{number}", f"10.0.{number}.1"), b"", NOW, NOW)
    directory.used(PeerId("honest0"))
    for number in range(500):
        announcement = said(f"evil{number}", f"6.6.6.{number % 250}")
        try:
            directory.take(announcement, b"", NOW + 1, NOW + 1)
        except RemoteProtocolError:
            assert len(directory) == 50
    directory.take(said("late", "10.9.9.1"), b"", NOW + 2, NOW + 2)
    alive = {a.peer for a in directory.alive(NOW + 2)}
    assert {"late", *(f"honest{n}" for n in range(10))} <= alive
    assert len(alive) == 50


def test_a_flood_that_lies_about_where_it_is_pushes_out_no_friend() -> None:
    directory = Directory(limit=20)
    for number in range(10):
        directory.take(said(f"honest{number}", f"10.0.{number}.1"), b"", NOW, NOW)
    directory.neighbours = frozenset(PeerId(f"honest{n}") for n in range(5))
    for number in range(500):
        directory.take(said(f"evil{number}", f"6.{number % 250}.{number // 250}.1"), b"", NOW + 1, NOW + 1)
    alive = {a.peer for a in directory.alive(NOW + 2)}
    assert {f"honest{n}" for n in range(10)} <= alive  # who has been there for longer stays, too


def test_who_only_says_goodbye_takes_nobodys_place() -> None:
    directory = Directory(limit=1)
    directory.take(said("a", "10.0.0.1"), b"", NOW, NOW)
    goodbye = msgspec.structs.replace(said("b", "10.0.1.1"), served=None)
    directory.take(goodbye, b"", NOW, NOW)
    assert [a.peer for a in directory.alive(NOW)] == ["a"]


def test_our_own_word_finds_a_place_in_the_largest_crowd() -> None:
    directory = Directory(limit=10)
    directory.neighbours = frozenset((PeerId("me"),))
    for number in range(10):
        directory.take(said(f"evil{number}", f"10.0.0.{number}"), b"", NOW, NOW)
    directory.take(said("me", "10.0.0.200"), b"", NOW + 1, NOW + 1)
    assert "me" in {a.peer for a in directory.alive(NOW + 1)}


def test_who_serves_what_this_machine_has_goes_after_who_serves_something_else() -> None:
    directory = Directory(limit=10)
    directory.know([said("x", "10.0.0.1").served.shape])
    directory.take(said("of use", "10.0.0.1"), b"", NOW, NOW)
    for number in range(500):
        served = msgspec.structs.replace(said("x", "10.0.0.1").served, digest=f"sha256:{number:064x}")
        evil = msgspec.structs.replace(
            said(f"evil{number}", f"6.{number % 250}.{number // 250}.1"), served=served
        )
        with suppress(RemoteProtocolError):
            directory.take(evil, b"", NOW - number, NOW)  # all of them have been there for longer
    directory.take(said("late and of use", "6.1.1.1"), b"", NOW + 1, NOW + 1)
    assert {"of use", "late and of use"} <= {a.peer for a in directory.alive(NOW + 1)}


def test_where_all_serve_what_this_machine_has_those_who_serve_something_else_find_no_place() -> None:
    directory = Directory(limit=10)
    directory.know([said("x", "10.0.0.1").served.shape])
    for number in range(10):
        directory.take(said(f"of use {number}", f"10.0.{number}.1"), b"", NOW, NOW)
    other = msgspec.structs.replace(said("x", "10.0.0.1").served, digest="sha256:" + "b" * 64)
    with pytest.raises(RemoteProtocolError, match="full"):
        directory.take(msgspec.structs.replace(said("other", "9.9.9.9"), served=other), b"", NOW, NOW)


def test_a_flood_into_a_full_directory_has_everybody_looked_at_once_in_a_while(monkeypatch) -> None:
    looked = []
    monkeypatch.setattr(
        "shoal.swarm.directory.peers_to_evict", lambda *args: looked.append(1) or peers_to_evict(*args)
    )
    directory = Directory(limit=640)
    for number in range(1640):
        directory.take(said(f"evil{number}", f"6.{number % 250}.{number // 250}.1"), b"", NOW, NOW)
    assert 630 <= len(directory) <= 640
    assert len(looked) == 100  # for a thousand newcomers
