"""Everybody with whom a connection has come about is greeted, and silence holds up nobody."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import DeadlineExceeded
from shoal.swarm.directory import Directory
from shoal.swarm.taking_part.neighbours import GREETED_AT_ONCE, Neighbours
from shoal.swarm.views.rules import ViewRules
from shoal.swarm.views.size import SwarmSize
from shoal.testing.memory import World
from shoal.types import PeerId

SILENT_S = 5.0


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class Greeting:
    """What a member does about connections, where some peers say nothing; when it has heard the others."""

    def __init__(self) -> None:
        self.world = World()
        self.silent: set[PeerId] = set()
        self.heard: dict[PeerId, float] = {}
        self.asked = self.asked_at_most = 0
        self.directory, now = Directory(), trio.current_time
        network = self.world.network()
        size = SwarmSize(ViewRules(), self.directory, 10, 30, now)
        self.neighbours = Neighbours(
            network, self.directory, size, 10, Random(1), now=now, join=trio.sleep_forever, pull=self.pull
        )

    async def pull(self, peer: PeerId, *_: object) -> None:
        self.asked += 1
        self.asked_at_most = max(self.asked, self.asked_at_most)
        await trio.sleep(SILENT_S if peer in self.silent else 0.05)
        self.asked -= 1
        if peer in self.silent:
            raise DeadlineExceeded("it does not answer")
        self.heard[peer] = trio.current_time()

    def connect(self, *, silent: bool = False) -> PeerId:
        peer = self.world.network().peer
        if silent:
            self.silent.add(peer)
        return peer


async def test_silent_connections_hold_up_neither_greetings_nor_who_is_a_neighbour(autojump_clock):
    greeting = Greeting()
    for _ in range(50):
        greeting.connect(silent=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(greeting.neighbours.greet)
        await trio.sleep(1)
        honest = greeting.connect()
        await trio.sleep(1)
        assert greeting.directory.neighbours >= {honest, *greeting.silent}
        await trio.sleep(30)  # one after the other they take 250 s
        assert set(greeting.heard) == {honest}
        assert greeting.asked == 0
        assert greeting.asked_at_most == GREETED_AT_ONCE
        nursery.cancel_scope.cancel()


async def test_those_who_answer_are_greeted_one_after_the_other_and_again_when_they_come_back(autojump_clock):
    greeting = Greeting()
    peers = [greeting.connect() for _ in range(20)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(greeting.neighbours.greet)
        await trio.sleep(2)
        assert set(greeting.heard) == set(peers)
        assert greeting.asked_at_most == 1
        left = greeting.world.peers.pop(peers[0])
        await trio.sleep(1)
        greeting.world.peers[peers[0]] = left
        await trio.sleep(1)
        assert greeting.heard.pop(peers[0]) > 2
        assert max(greeting.heard.values()) < 2
        nursery.cancel_scope.cancel()
