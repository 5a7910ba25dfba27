"""Members of a large swarm, where nine are many: words go to those of their model, others look them up."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random

import msgspec
import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.identity import Identity
from shoal.swarm.announcement import Announcement, Served, seal
from shoal.swarm.anti_entropy import (
    DirectoryDifference,
    DirectoryPart,
    DirectoryQuery,
    encode,
    key_of,
    read_difference,
)
from shoal.swarm.clock import Clock
from shoal.swarm.failure.detector import TOPIC as SUSPICION_TOPIC
from shoal.swarm.failure.suspicion import STRANGERS_PER_EXPIRY, Suspicion, encode_suspicion
from shoal.swarm.member import Member
from shoal.swarm.taking_part.comparison import DIRECTORY_PROTOCOL
from shoal.swarm.taking_part.speaker import TOPIC
from shoal.swarm.views.look_up import manifest_key
from shoal.swarm.views.placeless import LastWord
from shoal.swarm.views.rules import ViewRules, model_topic
from shoal.testing.memory import MemoryNetwork, World
from shoal.types import Digest, PeerId

RULES = ViewRules(partial_from=9, whole_below=6, view_peers=16, drawn_peers=16, entry_peers=2)
ONE, TWO = (Digest("sha256:" + letter * 64) for letter in "ab")


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class ThinNetwork(MemoryNetwork):
    """Connected to those alone who were dialled, or have dialled it."""

    def linked(self) -> set[PeerId]:
        return self._world.links[self.peer]

    async def connect(self, multiaddr: str, *, deadline_s: float) -> PeerId:
        peer = await super().connect(multiaddr, deadline_s=deadline_s)
        self._world.links[self.peer].add(peer)
        self._world.links[peer].add(self.peer)
        return peer

    def connections(self):
        return [c for c in super().connections() if c.peer in self.linked()]

    async def request(self, peer: PeerId, protocol: str, body: bytes, *, deadline_s: float) -> bytes:
        if peer not in self.linked():
            raise ChannelClosed(f"no connection to {peer}")
        return await super().request(peer, protocol, body, deadline_s=deadline_s)

    async def publish(self, topic: str, data: bytes) -> None:
        self._world.said[topic] += 1
        await super().publish(topic, data)


class ThinWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.links: dict[PeerId, set[PeerId]] = {}
        self.said = Counter[str]()

    def network(self) -> ThinNetwork:
        network = ThinNetwork(self, Identity.ephemeral())
        self.peers[network.peer] = network
        self.links[network.peer] = set()
        return network


@dataclass
class Swarm:
    world: ThinWorld
    nursery: trio.Nursery
    members: list[Member]

    async def enter(self, digest: Digest | None = None, **changes: object) -> Member:
        """One more member; it serves a part of the model, if one is named."""
        number, network = len(self.members), self.world.network()
        named = Random(number).sample(self.members, min(2, number))
        options = {
            "announce_s": 1,
            "expiry_s": 3,
            "bootstrap": [f"/memory/{m.network.peer}/p2p/{m.network.peer}" for m in named],
            "swarm": b"ours",
            "views": RULES,
            "clock": Clock(trio.current_time, trio.current_time),
            "chance": Random(number),
        }
        member = Member(network, **(options | changes))
        await self.nursery.start(member.run)
        if digest is not None:
            start = 4 * number % 28
            served = Served("m", digest, 32, 576, 2048, 49152, start, start + 4, "fp32", 9, 9, 0, 2.5)
            member.served = lambda: served
            await member.announce()
        self.members.append(member)
        return member

    def of(self, digest: Digest) -> list[Member]:
        return [m for m in self.members if m.served is not None and m.served().digest == digest]


def knows(member: Member, digest: Digest) -> set[str]:
    return {a.peer for a in member.directory.serving(digest, member.now())}


def peers(members: list[Member]) -> set[str]:
    return {member.network.peer for member in members}


@asynccontextmanager
async def swarm_of(ones: int, twos: int) -> AsyncGenerator[Swarm]:
    """That many serve each of two models; the swarm is a large one to all."""
    async with trio.open_nursery() as nursery:
        swarm = Swarm(ThinWorld(), nursery, [])
        for number in range(ones + twos):
            await swarm.enter(ONE if number % 2 == 0 and number // 2 < ones else TWO)
        await trio.sleep(8)  # until nobody is known any more to whom it was a small one
        yield swarm
        nursery.cancel_scope.cancel()


async def test_words_go_to_those_of_their_model_and_a_few_peers_are_known_to_the_others(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        assert all(member.size.partial and not member.size.overlapping for member in swarm.members)
        for own, other in ((ONE, TWO), (TWO, ONE)):
            for member in swarm.of(own):
                assert knows(member, own) == peers(swarm.of(own))
                assert 1 <= len(knows(member, other)) <= RULES.entry_peers
        swarm.world.said.clear()
        await trio.sleep(10)
        topics = {model_topic(b"ours", TOPIC, digest) for digest in (ONE, TWO)}
        assert topics <= swarm.world.said.keys()
        # As many as the rules say: the swarm's topic has no more, whatever the models have.
        assert 30 <= swarm.world.said[TOPIC] <= 50
        newcomer = await swarm.enter(ONE)
        await trio.sleep(1)
        assert all(newcomer.network.peer in knows(member, ONE) for member in swarm.of(ONE))
        assert knows(newcomer, ONE) == peers(swarm.of(ONE))


async def test_a_model_that_was_never_asked_for_is_found_by_those_who_are_known_of_it(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        client = await swarm.enter()
        await trio.sleep(6)
        assert client.size.partial
        assert len(knows(client, TWO)) <= RULES.entry_peers
        began = trio.current_time()
        await client.use(TWO)
        assert trio.current_time() - began < 3.0
        assert knows(client, TWO) == peers(swarm.of(TWO))
        node = swarm.of(TWO)[0]
        await trio.sleep(2)
        said = node.directory.sequence(node.network.peer)
        await node.announce()
        await trio.sleep(0.1)  # from now on it hears what they say
        assert client.directory.sequence(node.network.peer) > said


async def test_where_nobody_is_known_of_a_model_the_dht_finds_it(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        three = Digest("sha256:" + "c" * 64)
        hidden = await swarm.enter(three)
        asker = swarm.of(ONE)[0]
        asker.directory.drop(hidden.network.peer, asker.now())
        asker.directory._gone.forget(hidden.network.peer)
        asker.directory._placeless.note(
            hidden.network.peer, LastWord(1, asker.now(), 4.0)
        )  # as of most peers
        await hidden.network.provide(manifest_key(three))
        assert knows(asker, three) == set()
        await asker.use(three)
        assert knows(asker, three) == {hidden.network.peer}


async def test_entries_that_are_silent_take_no_longer_than_a_look_up_may(autojump_clock, monkeypatch):
    async with swarm_of(5, 5) as swarm:
        client = swarm.of(ONE)[0]

        async def silence(*_: object, **__: object) -> bytes:
            return await trio.sleep_forever()

        monkeypatch.setattr(client.network, "request", silence)
        began = trio.current_time()
        await client.use(TWO)
        assert trio.current_time() - began < 6.0


async def test_a_dead_peer_is_gone_within_an_expiry_for_all_of_its_model(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        dead = swarm.of(ONE)[3]
        swarm.world.kill(dead.network.peer)
        dead.served = None
        await trio.sleep(3.1)
        assert not any(dead.network.peer in knows(member, ONE) for member in swarm.of(ONE))
        assert swarm.world.said[model_topic(b"ours", SUSPICION_TOPIC, ONE)]


async def test_who_hears_the_swarms_topic_alone_goes_on_hearing_of_everybody(autojump_clock):
    """A release from before, to which every swarm is one."""
    async with swarm_of(5, 5) as swarm:
        before = await swarm.enter(ONE, views=ViewRules(partial_from=10**6, whole_below=10**6))
        await trio.sleep(6)
        assert all(member.size.overlapping for member in swarm.of(ONE) if member is not before)
        assert before.directory.peers() == peers(swarm.members)
        swarm.world.said.clear()
        await trio.sleep(10)
        assert before.directory.peers() == peers(swarm.members)
        assert swarm.world.said[TOPIC] < 200  # as often as in a small swarm, and no more
        assert before.network.peer in knows(swarm.of(ONE)[0], ONE)


async def test_a_swarm_that_has_shrunk_is_one_again(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        for member in swarm.members[3:]:
            await member.leave()
        left = swarm.members[:3]
        await trio.sleep(30)
        assert not any(member.size.partial for member in left)
        assert all(knows(member, ONE) | knows(member, TWO) == peers(left) for member in left)
        swarm.world.said.clear()
        await trio.sleep(10)
        assert swarm.world.said.keys() == {TOPIC}


async def test_a_flood_of_identities_pushes_no_honest_peer_of_ones_model_out(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        victim, evil = swarm.of(ONE)[0], swarm.world.network()
        honest = swarm.of(ONE)[1].served()
        wall = victim.clock.wall()
        made = []
        for number in range(300):
            identity = Identity.ephemeral()
            start = number % 28
            lie = msgspec.structs.replace(honest, start=start, end=start + 4, digest=(ONE, TWO)[number % 2])
            at = (f"/ip4/30.{number}.1.1/tcp/1",)
            made.append(seal(Announcement(identity.peer, 1, wall, wall + 3000, at, (), lie), identity.sign))

        async def tell(*_: object) -> bytes:
            return encode(DirectoryDifference(made, {}, wall))

        evil.answer(DIRECTORY_PROTOCOL, tell)
        await victim.network.connect(f"/p2p/{evil.peer}", deadline_s=1)
        await victim.pull(evil.peer)
        assert len(victim.directory) < 80
        assert len(knows(victim, ONE) & peers(swarm.of(ONE))) >= 4
        await trio.sleep(10)
        assert len(knows(victim, ONE) & peers(swarm.of(ONE))) >= 4


def passes(member: Member, topic: str, author: MemoryNetwork, raw: bytes) -> bool:
    """Whether a member takes what an author says on ONE's topic, and passes it on."""
    validate, _ = member.network._topics[model_topic(b"ours", topic, ONE)]
    return validate(author.peer, raw)


async def suspicion_of(suspected: Member, members: list[Member]) -> Suspicion:
    """Of a peer's newest word, as soon as that has been there for long enough at these members."""
    peer = suspected.network.peer
    with trio.fail_after(5):
        while True:
            sequence = members[0].directory.sequence(peer)
            if all(m.directory.may_suspect(peer, sequence, m.now(), 0.3) for m in members):
                return Suspicion(peer, sequence)
            await trio.sleep(0.05)


async def test_on_a_models_topic_only_its_peers_speak_and_whoever_leaves_it(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        member, other, *_ = swarm.of(ONE)
        of_two = next(two for two in swarm.of(TWO) if two.network.peer in knows(member, TWO))
        stranger, wall = swarm.world.network(), member.clock.wall()

        def word(network: MemoryNetwork, served: Served | None) -> bytes:
            sequence = round(wall * 1000) + 10**6
            said = Announcement(network.peer, sequence, wall, wall + 30, (), (), served)
            return seal(said, network.sign)

        assert not passes(member, TOPIC, stranger, word(stranger, of_two.served()))
        assert passes(member, TOPIC, stranger, word(stranger, other.served()))
        assert not passes(member, TOPIC, stranger, word(other.network, other.served()))
        assert passes(member, TOPIC, other.network, word(other.network, None))
        assert passes(member, TOPIC, stranger, word(stranger, None))  # whatever it has served
        assert not passes(member, TOPIC, of_two.network, word(of_two.network, None))


async def test_strangers_suspect_so_often_together_and_take_nothing_from_those_who_are_known(autojump_clock):
    async with swarm_of(5, 5) as swarm:
        member, accuser, victim, *_ = swarm.of(ONE)
        strangers = [swarm.world.network() for _ in range(4)]
        topic = model_topic(b"ours", SUSPICION_TOPIC, ONE)
        for number in range(STRANGERS_PER_EXPIRY):
            raw = encode_suspicion(Suspicion(f"nobody {number}", 1))
            assert passes(member, SUSPICION_TOPIC, strangers[number % 4], raw)
            await strangers[number % 4].publish(topic, raw)
        await trio.sleep(0.01)
        raw = encode_suspicion(Suspicion("nobody", 1))
        assert not any(passes(member, SUSPICION_TOPIC, stranger, raw) for stranger in strangers)
        raw = encode_suspicion(await suspicion_of(victim, [member]))
        assert not passes(member, SUSPICION_TOPIC, strangers[0], raw)
        assert passes(member, SUSPICION_TOPIC, accuser.network, raw)


async def test_a_strangers_suspicion_of_one_that_lives_evicts_nobody(autojump_clock, monkeypatch):
    async with swarm_of(5, 5) as swarm:
        victim, *others = swarm.of(ONE)
        peer, stranger = victim.network.peer, swarm.world.network()
        suspicion = await suspicion_of(victim, others)

        async def lost(topic: str, data: bytes) -> None:
            """Nobody hears it refute that."""

        monkeypatch.setattr(victim.network, "publish", lost)
        await stranger.publish(model_topic(b"ours", SUSPICION_TOPIC, ONE), encode_suspicion(suspicion))
        await trio.sleep(1.5)  # it would be gone by now
        assert all(peer in knows(other, ONE) for other in others)
        assert all(
            other.directory.sequence(peer) > suspicion.sequence for other in others
        )  # they have asked it


async def test_a_comparison_brings_what_was_asked_for_though_a_peer_knows_many_itself(autojump_clock):
    member = Member(World().network(), announce_s=1, expiry_s=3, clock=Clock(trio.current_time, lambda: 1e9))
    for number in range(60):
        served = Served("m", (ONE, TWO)[number % 3 == 0], 32, 576, 2048, 49152, 0, 4, "fp32", 9, 9, 0, 2.5)
        said = Announcement(f"p{number}", 1, 1e9, 1e9 + 30, (), (), served)
        member.directory.take(said, said.peer.encode(), member.now(), 1e9)
    member.directory.neighbours = frozenset(PeerId(f"p{number}") for number in range(40))
    part = DirectoryPart(2, 0)
    question = encode(DirectoryQuery(part, {}, (manifest_key(ONE),), 12))
    told = [
        raw.decode() for raw in read_difference(await member._comparison.tell(PeerId("a"), question)).news
    ]
    assert len(told) == 12
    assert not any(int(name[1:]) % 3 == 0 for name in told)  # of that model alone
    assert sum(part.has(key_of(PeerId(name))) for name in told) >= 9


async def test_a_model_that_is_named_again_and_again_is_told_of_once(autojump_clock):
    member = Member(World().network(), announce_s=1, expiry_s=3, clock=Clock(trio.current_time, lambda: 1e9))
    for number in range(30):
        served = Served("m", (ONE, TWO)[number % 3 == 0], 32, 576, 2048, 49152, 0, 4, "fp32", 9, 9, 0, 2.5)
        said = Announcement(f"p{number}", 1, 1e9, 1e9 + 30, (), (), served)
        member.directory.take(said, said.peer.encode(), member.now(), 1e9)
    question = encode(DirectoryQuery(DirectoryPart(1, 0), {}, (manifest_key(TWO),) * 16, 1000))
    told = read_difference(await member._comparison.tell(PeerId("a"), question)).news
    assert len(told) == len(set(told)) == 10
