"""Members hear of each other: by gossip, by asking, through the DHT; and forget who is gone."""

from __future__ import annotations

from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import MockClock

from shoal.errors import DeadlineExceeded, RemoteProtocolError
from shoal.net.identity import Identity
from shoal.swarm.announcement import Served
from shoal.swarm.anti_entropy import EVERYONE, DirectoryQuery, encode, read_difference
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.swarm.taking_part import speaker
from shoal.swarm.taking_part.comparison import ANSWERS_AT_ONCE, ANSWERS_PER_S, DIRECTORY_PROTOCOL
from shoal.swarm.taking_part.speaker import TOPIC
from shoal.testing.memory import MemoryNetwork, World
from shoal.trust.operator import state
from shoal.types import Digest

DIGEST = Digest("sha256:" + "a" * 64)


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0)


def served() -> Served:
    return Served("tiny", DIGEST, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)


def a_clock() -> Clock:
    return Clock(trio.current_time, trio.current_time)


def address(network) -> str:
    return f"/memory/{network.peer}/p2p/{network.peer}"


@asynccontextmanager
async def members(world: World, count: int, **changes):
    """The first is everybody's bootstrap peer."""
    networks = [world.network() for _ in range(count)]
    async with trio.open_nursery() as nursery:
        found = []
        for network in networks:
            bootstrap = [address(networks[0])] if found else []
            options = {"announce_s": 10, "expiry_s": 30, "bootstrap": bootstrap, "clock": a_clock()}
            member = Member(network, **(options | changes))
            await nursery.start(member.run)
            found.append(member)
        yield found
        nursery.cancel_scope.cancel()


async def test_everyone_hears_what_a_node_announces(autojump_clock):
    async with members(World(), 4) as (node, *others):
        node.served = served
        await node.announce()
        await trio.sleep(1)
        assert all([a.peer for a in other.alive()] == [node.network.peer] for other in others)


async def test_a_node_announces_its_operator_as_long_as_the_statement_holds(autojump_clock, caplog):
    operator, world = Identity.ephemeral(), World()
    async with members(world, 2, announce_s=1) as (node, other):
        node._speaker._operator = state(
            operator.peer, node.network.peer, trio.current_time() + 5, 0, operator.sign
        )
        node.served = served
        await node.announce()
        await trio.sleep(1)
        assert other.directory.operator_of(node.network.peer) == operator.peer
        assert other.directory.operator_of(other.network.peer) == ""
        await trio.sleep(30)
        assert [a.peer for a in other.alive()] == [node.network.peer]  # it is there, and nobody's
        assert other.directory.operator_of(node.network.peer) == ""
        assert caplog.text.count("announces its operator no more") == 1


async def test_a_member_says_once_that_most_others_run_a_newer_release(autojump_clock, monkeypatch, caplog):
    async with members(World(), 3, announce_s=1) as (first, *nodes):
        with monkeypatch.context() as patch:
            patch.setattr(speaker, "AGENT", "shoal/99.1")
            for node in nodes:
                node.served = served
                await node.announce()
            await trio.sleep(1)
            for node in nodes:
                node.served = None  # from here on they say nothing
        await trio.sleep(10)
        assert len(first.alive()) == 2
    (said,) = [record for record in caplog.records if "a newer release" in record.getMessage()]
    assert said.levelname == "WARNING"
    assert said.getMessage().endswith("2 of 2 peers a newer release, such as 99.1: upgrade it")


async def test_a_newcomer_hears_at_once_what_its_bootstrap_peer_knows(autojump_clock):
    world = World()
    async with members(world, 2) as (first, node):
        node.served = served
        await node.announce()
        await trio.sleep(1)
        newcomer = Member(
            world.network(),
            announce_s=10,
            expiry_s=30,
            bootstrap=[address(first.network)],
            clock=a_clock(),
        )
        assert await newcomer.join() == {}
        assert [a.peer for a in newcomer.alive()] == [node.network.peer]


async def test_what_gossip_lost_is_pulled_later(autojump_clock):
    world = World()
    async with members(world, 3) as (first, node, other):
        world.cut.add(frozenset((node.network.peer, other.network.peer)))
        node.served = served
        await node.announce()
        await trio.sleep(25)
        assert [a.peer for a in other.alive()] == [node.network.peer]
        assert first.alive()


async def test_a_killed_node_is_gone_everywhere_after_one_expiry(autojump_clock):
    world = World()
    async with members(world, 4) as (first, node, *others):
        node.served = served
        await trio.sleep(60)
        assert all(other.alive() for other in (first, *others))
        node.served = None
        world.kill(node.network.peer)
        await trio.sleep(30)
        assert not any(other.alive() for other in (first, *others))


async def test_a_node_that_leaves_is_gone_at_once(autojump_clock):
    async with members(World(), 3) as (node, *others):
        node.served = served
        await node.announce()
        await trio.sleep(1)
        await node.leave()
        await trio.sleep(1)
        assert not any(other.alive() for other in others)
        await trio.sleep(60)
        assert not any(other.alive() for other in others)


async def test_the_dht_finds_a_node_that_gossip_has_not_brought(autojump_clock):
    world = World()
    async with members(world, 2) as (node, other):
        world.cut.add(frozenset((node.network.peer, other.network.peer)))
        node.served = served
        await trio.sleep(15)
        world.cut.clear()
        await other.find(DIGEST)
        assert [a.peer for a in other.alive()] == [node.network.peer]


async def test_last_words_that_only_some_have_heard_bring_no_ghost_back(autojump_clock):
    world = World()
    async with members(world, 3) as (hearer, other, node):
        node.served = served
        await node.announce()
        await trio.sleep(1)
        world.cut.add(frozenset((node.network.peer, other.network.peer)))
        await node.announce()
        await trio.sleep(0.1)
        world.kill(node.network.peer)
        other.directory.drop(node.network.peer, other.now())
        assert [a.peer for a in hearer.alive()] == [node.network.peer]
        await other.pull(hearer.network.peer)  # which has a newer word than the one that is over
        assert other.alive() == []


async def test_one_cannot_speak_for_another(autojump_clock):
    world = World()
    async with members(world, 3) as (node, forger, other):
        node.served = served
        await node.announce()
        await trio.sleep(1)
        (raw,) = forger.directory.news(EVERYONE, {}, trio.current_time())
        changed = bytearray(raw)
        changed[40] ^= 1
        other.directory.drop(node.network.peer, other.now())
        await forger.network.publish(TOPIC, bytes(changed))
        await forger.network.publish(TOPIC, raw)  # the true one, by another author
        await trio.sleep(1)
        assert other.alive() == []


async def test_an_answer_that_is_no_directory_is_refused(autojump_clock):
    world = World()
    async with members(world, 1) as (member,):
        liar = world.network()

        async def lie(peer, question):
            return msgspec.msgpack.encode({"not": "a list"})

        liar.answer(DIRECTORY_PROTOCOL, lie)
        with pytest.raises(RemoteProtocolError):
            await member.pull(liar.peer)


async def test_a_bootstrap_peer_that_does_not_answer_holds_nobody_up(autojump_clock, monkeypatch):
    world = World()
    silent, first = world.network(), world.network()
    connect = MemoryNetwork.connect

    async def slowly(network, multiaddr, *, deadline_s):
        if multiaddr == address(silent):
            await trio.sleep(deadline_s)
            raise DeadlineExceeded("it did not answer")
        return await connect(network, multiaddr, deadline_s=deadline_s)

    monkeypatch.setattr(MemoryNetwork, "connect", slowly)
    options = {"announce_s": 10, "expiry_s": 30, "clock": a_clock()}
    async with trio.open_nursery() as nursery:
        await nursery.start(Member(first, **options).run)
        began = trio.current_time()
        newcomer = Member(world.network(), bootstrap=[address(silent), address(first)], **options)
        await nursery.start(newcomer.run)
        assert trio.current_time() - began < 1.0
        assert first.peer in {connection.peer for connection in newcomer.network.connections()}
        nursery.cancel_scope.cancel()


async def test_a_bootstrap_peer_that_is_down_is_named_and_stops_nobody(autojump_clock):
    world = World()
    gone = world.network()
    world.kill(gone.peer)
    member = Member(world.network(), announce_s=10, expiry_s=30, bootstrap=[address(gone)], clock=a_clock())
    assert list(await member.join()) == [address(gone)]


async def test_an_answer_is_bounded_however_long_the_directory(autojump_clock, monkeypatch):
    async with members(World(), 2) as (member, other):
        monkeypatch.setattr(member.directory, "news", lambda *_: [bytes(1000)] * 4000)
        question = encode(DirectoryQuery(EVERYONE, {}))
        answer = await other.network.request(member.network.peer, DIRECTORY_PROTOCOL, question, deadline_s=1)
        assert 500 < len(read_difference(answer).news) < 1000
        assert len(answer) < 1 << 20


async def test_who_asks_too_often_hears_the_time_alone_and_others_hear_everything(autojump_clock):
    async with members(World(), 3) as (member, flood, other):
        for node in (member, other):
            node.served = served
            await node.announce()
        await trio.sleep(1)
        member.directory.drop(other.network.peer, member.now())
        question = encode(DirectoryQuery(EVERYONE, {}))

        async def ask(asker: Member, question: bytes = question):
            raw = await asker.network.request(member.network.peer, DIRECTORY_PROTOCOL, question, deadline_s=1)
            return read_difference(raw)

        full = [bool((await ask(flood)).gone) for _ in range(2 * ANSWERS_AT_ONCE)]
        assert ANSWERS_AT_ONCE <= full.count(True) <= ANSWERS_AT_ONCE + ANSWERS_PER_S
        over = await ask(flood, b"nobody reads that")
        assert (over.news, over.gone, over.wall) == ([], {}, member.clock.own)
        answer = await ask(other)
        assert answer.gone and answer.news
