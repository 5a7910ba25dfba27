"""Who is asked for weights: who serves, who says that it shares, and never who has lied."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from shoal.errors import DeadlineExceeded, RemoteProtocolError
from shoal.sharing import peer_finder
from shoal.sharing.peer_finder import ASK_DHT_EVERY_S, ASKED_AT_ONCE, PeerFinder, read_address, served_as
from shoal.sharing.weight_server import ADDRESS_PROTOCOL, answer_address
from shoal.sharing.wrong_peers import FILE, KEPT_S, LIMIT, WrongPeers
from shoal.swarm.announcement import Served
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.swarm.views.look_up import manifest_key
from shoal.testing.memory import World
from shoal.types import Digest, PeerAddress, PeerId
from shoal.wire.fields import NextHop

DIGEST, OTHER = Digest("sha256:" + "a" * 64), Digest("sha256:" + "b" * 64)


def served(digest: Digest) -> Served:
    return Served("Fish", digest, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)


async def member_in(world: World, nursery: trio.Nursery, digest: Digest | None = None) -> Member:
    """A member that knows the first of the world, and may serve a model."""
    network = world.network()
    first = next(iter(world.peers))
    bootstrap = [f"/memory/{first}/p2p/{first}"] if first != network.peer else []
    clock = Clock(trio.current_time, trio.current_time)
    member = Member(network, announce_s=10, expiry_s=30, bootstrap=bootstrap, clock=clock)
    await nursery.start(member.run)
    if digest is not None:
        member.served = lambda: served(digest)
        await member.announce()
    return member


async def test_who_serves_is_asked_and_who_only_shares_once_it_says_where_it_is(tmp_path: Path) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        serving = await member_in(world, nursery, DIGEST)
        sharing = await member_in(world, nursery)
        answer_address(sharing.network)
        await member_in(world, nursery)  # it neither serves nor shares
        ours = await member_in(world, nursery)
        finder = PeerFinder(ours, DIGEST, WrongPeers(tmp_path))
        assert [a.peer for a in await finder.find()] == [serving.network.peer], "who is known comes at once"
        assert {a.peer for a in await finder.find()} == {serving.network.peer, sharing.network.peer}
        WrongPeers(tmp_path).note(serving.network.peer)
        assert [a.peer for a in await finder.find()] == [sharing.network.peer]
        nursery.cancel_scope.cancel()


async def test_who_only_told_the_dht_is_approached_and_asked_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, asked = World(), list[PeerId]()

    async def lie(peer: PeerId, question: bytes) -> bytes:
        asked.append(peer)
        return msgspec.msgpack.encode(NextHop.of(ours.network.address))

    async with trio.open_nursery() as nursery:
        ours = await member_in(world, nursery)
        sharing, lying, gone = [await member_in(world, nursery) for _ in range(3)]
        answer_address(sharing.network)
        lying.network.answer(ADDRESS_PROTOCOL, lie)
        for member in (sharing, lying, gone, ours):
            await member.network.provide(manifest_key(DIGEST))
        world.kill(gone.network.peer)
        monkeypatch.setattr(ours.network, "connections", lambda: ())
        finder = PeerFinder(ours, DIGEST, WrongPeers(tmp_path))
        for _ in range(2):
            assert await finder.find() == [sharing.network.address]
        assert asked == [ours.network.peer]
        nursery.cancel_scope.cancel()


async def test_the_dht_is_asked_now_and_again_and_may_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    asked: list[bytes] = []

    async def fail(key: bytes, *, deadline_s: float) -> Sequence[PeerAddress]:
        asked.append(key)
        raise DeadlineExceeded("nobody answers")

    async with trio.open_nursery() as nursery:
        ours = await member_in(World(), nursery)
        monkeypatch.setattr(ours.network, "find_providers", fail)
        finder = PeerFinder(ours, DIGEST, WrongPeers(tmp_path))
        for _ in range(3):
            assert await finder.find() == []
        assert asked == [manifest_key(DIGEST)]
        await trio.sleep(ASK_DHT_EVERY_S + 1)
        await finder.find()
        assert len(asked) == 2
        nursery.cancel_scope.cancel()


async def test_a_crowd_is_asked_some_at_a_time_and_remembered_within_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_finder, "ASKED_LIMIT", 2 * ASKED_AT_ONCE)
    async with trio.open_nursery() as nursery:
        ours = await member_in(world := World(), nursery)
        for _ in range(4 * ASKED_AT_ONCE):
            answer_address(world.network())
        finder = PeerFinder(ours, DIGEST, WrongPeers(tmp_path))
        found = [len(await finder.find()) for _ in range(8)]
        assert found[:2] == [ASKED_AT_ONCE, 2 * ASKED_AT_ONCE]
        assert max(found) <= 2 * ASKED_AT_ONCE
        nursery.cancel_scope.cancel()


async def test_a_name_is_what_most_peers_serve_under_it(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with trio.open_nursery() as nursery:
        for digest in (OTHER, DIGEST, DIGEST):
            await member_in(world, nursery, digest)
        ours = await member_in(world, nursery)
        assert await served_as(ours, "fish", 3.0) == DIGEST
        assert await served_as(ours, "whale", 3.0) is None
        nursery.cancel_scope.cancel()


def test_an_address_is_of_who_tells_it() -> None:
    address = PeerAddress(PeerId("a"), ("/memory/a",), ("/ip4/127.0.0.1/tcp/1",))
    raw = msgspec.msgpack.encode(NextHop.of(address))
    assert read_address(PeerId("a"), raw) == address
    for peer, said in (
        ("b", raw),
        ("a", b""),
        ("a", b"\xc1"),
        ("a", msgspec.msgpack.encode(["a", ["x" * 999]])),
    ):
        with pytest.raises(RemoteProtocolError):
            read_address(PeerId(peer), said)


def test_a_liar_is_remembered_for_a_week_by_every_process(tmp_path: Path) -> None:
    now = 1000.0
    WrongPeers(tmp_path, lambda: now).note(PeerId("liar"))
    again = WrongPeers(tmp_path, lambda: now)
    assert PeerId("liar") in again.peers()
    assert PeerId("other") not in again.peers()
    now += KEPT_S + 1
    assert PeerId("liar") not in again.peers()


def test_the_list_of_liars_has_a_bound_and_may_be_damaged(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps({str(number): float(number) for number in range(LIMIT)}))
    wrong = WrongPeers(tmp_path, lambda: LIMIT + 1.0)
    wrong.note(PeerId("newest"))
    assert PeerId("0") not in wrong.peers()
    assert PeerId("1") in wrong.peers()
    assert PeerId("newest") in wrong.peers()
    for raw in (b"", b"{", b"[1]", b'{"a": "b"}', b"\xff", b"[" * 5000):
        (tmp_path / FILE).write_bytes(raw)
        assert PeerId("a") not in wrong.peers()
