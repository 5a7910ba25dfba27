"""Clocks that differ by a day: too few peers to say who is wrong, and yet all hear of each other."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from shoal.swarm.announcement import Served
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.testing.memory import World

DAY_S = 86400.0


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0)


def served() -> Served:
    return Served("tiny", "sha256:" + "a" * 64, 30, 576, 2048, 49152, 0, 10, "fp32", 4096, 4096, 0, 2.5)


@asynccontextmanager
async def members(world: World, *ahead_s: float):
    """Nodes whose clocks are so far ahead; the first is everybody's bootstrap peer."""
    async with trio.open_nursery() as nursery:
        found = []
        for by_s in ahead_s:
            network = world.network()
            first = found[0].network.peer if found else None
            member = Member(
                network,
                announce_s=10,
                expiry_s=30,
                bootstrap=[f"/memory/{first}/p2p/{first}"] if first else [],
                clock=Clock(trio.current_time, lambda by_s=by_s: 1e9 + trio.current_time() + by_s),
            )
            member.served = served
            await nursery.start(member.run)
            found.append(member)
        yield found
        nursery.cancel_scope.cancel()


def heard(member: Member) -> set[str]:
    return {announcement.peer for announcement in member.alive()}


@pytest.mark.parametrize("off_s", [DAY_S, -DAY_S])
@pytest.mark.parametrize("others", [1, 2])
async def test_a_node_whose_clock_is_a_day_off_is_seen_and_sees(autojump_clock, off_s, others):
    async with members(World(), *([0.0] * others), off_s) as found:
        everybody = {member.network.peer for member in found}
        await trio.sleep(45)
        assert all(heard(member) == everybody for member in found)
        assert all(0 < m.directory.expires_in_s(p, m.now()) <= 30 for m in found for p in everybody)


async def test_both_sides_say_so(autojump_clock, caplog):
    async with members(World(), 0.0, DAY_S) as (right, wrong):
        await trio.sleep(20)
        assert "is 24 hours ahead of this machine's" in right.clock.doubts()
        assert "is 24 hours behind this machine's" in wrong.clock.doubts()
        assert (right.clock.ahead_s, wrong.clock.ahead_s) == (-DAY_S, DAY_S)
    assert "24 hours" in caplog.text


async def test_a_newcomer_asks_whom_it_only_hears_of_what_time_it_is_there(autojump_clock):
    """It is no neighbour of the node whose clock is off: another tells of it."""
    world = World()
    async with members(world, 0.0, DAY_S) as (_, wrong):
        await trio.sleep(20)
        async with members(world, 0.0) as (newcomer,):
            await newcomer.pull(next(iter(world.peers)))
            await trio.sleep(5)
            assert wrong.network.peer in heard(newcomer)


async def test_words_that_are_over_by_their_peers_own_time_stay_over(autojump_clock):
    world = World()
    async with members(world, 0.0, DAY_S) as (right, wrong):
        await trio.sleep(20)
        raw = right.directory.raw(wrong.network.peer)
        assert raw
        wrong.served = None
        world.kill(wrong.network.peer)
        await trio.sleep(60)
        assert wrong.network.peer not in heard(right)
        right._take(raw)
        assert wrong.network.peer not in heard(right)
