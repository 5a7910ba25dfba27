"""Channels go on over another pipe, and nothing is lost: in memory, with the manual clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net.channel import Channel
from shoal.net.moving.liveness import DEAD_AFTER_S, LATE_S, PING_EVERY_S
from shoal.net.moving.moving_pipe import AWAY_S, TAIL_HELD_S, MovingPipe
from shoal.net.moving.resume import message_bytes
from shoal.net.moving.schedule import RESCUES, SOON_S
from shoal.testing.memory import World
from shoal.wire.messages import NEWEST_VERSION, Close, Hello, Ping, Pong, Resume
from tests.net.test_channel import ONE, step
from tests.net.test_pool import Peer, peers

BUSY_S = 0.05
"""Between two messages of a session that goes on all the time."""


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


class Session:
    """Numbered messages both ways over one channel, and what of them arrives."""

    def __init__(self, client: Peer, node: Peer, mine: Channel, theirs: Channel) -> None:
        self.client, self.node, self.mine, self.theirs = client, node, mine, theirs
        self.sent = 0

    async def run(self) -> None:
        while True:
            for channel in (self.mine, self.theirs):
                with suppress(ChannelClosed):
                    channel.send_now(Close(self.sent.to_bytes(16, "big")))
            self.sent += 1
            await trio.sleep(BUSY_S)

    def arrived(self) -> bool:
        """Whether all has, each once and in order, but for what is on its way."""
        expected = [Close(number.to_bytes(16, "big")) for number in range(self.sent)]
        both = (self.client.taken, self.node.taken)
        return all(taken == expected[: len(taken)] and len(taken) > self.sent - 3 for taken in both)


@asynccontextmanager
async def session(world: World, *, relayed: bool = False) -> AsyncGenerator[Session]:
    async with peers(True, False, world=world) as (node, client), trio.open_nursery() as nursery:
        if relayed:
            world.relayed.add(frozenset((node.network.peer, client.network.peer)))
        mine = await client.pool.get(node.network.address, deadline_s=5)
        await trio.sleep(0.01)
        made = Session(client, node, mine, node.pool.all()[0])
        nursery.start_soon(made.run)
        yield made
        nursery.cancel_scope.cancel()


def pair(made: Session) -> tuple:
    return made.client.network.peer, made.node.network.peer


async def test_a_relayed_channel_takes_the_direct_way_once_there_is_one(autojump_clock: MockClock) -> None:
    world = World()
    async with session(world, relayed=True) as made:
        await trio.sleep(SOON_S[0] + 0.5)
        assert (made.mine.way, made.mine.moves) == ("relayed", 0)
        world.relayed.clear()
        await trio.sleep(10)
        assert (made.mine.way, made.theirs.way) == ("lan", "lan")
        assert made.mine.moves == made.theirs.moves == made.client.pool.moved == 1
        assert made.arrived()
        assert made.client.dials == 2
        assert len(made.client.pool.all()) == len(made.node.pool.all()) == 1


async def test_a_direct_channel_looks_for_nothing_better(autojump_clock: MockClock) -> None:
    async with session(World()) as made:
        await trio.sleep(100)
        assert (made.client.dials, made.mine.moves) == (1, 0)


@pytest.mark.parametrize("silently", [False, True], ids=["ended", "silent"])
async def test_a_pipe_that_is_gone_is_replaced_and_nothing_is_lost(
    autojump_clock: MockClock, silently: bool
) -> None:
    world = World()
    async with session(world) as made:
        for times in (1, 2, 3):
            await trio.sleep(5)
            world.break_pipes(*pair(made), silently=silently)
            # A silent one is known by a ping that was not answered.
            await trio.sleep(LATE_S + PING_EVERY_S / 2 + 0.3 if silently else 0.3)
            assert (made.mine.moves, made.theirs.moves) == (times, times)
            assert made.arrived()
        assert made.client.ended == made.node.ended == []


async def test_when_a_peer_falls_silent_both_ends_look_whether_their_relays_answer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end that was dialled cannot dial; but it can see to it that it can be called."""
    doubted: list[str] = []
    world = World()
    async with session(world) as made:
        for name, peer in (("client", made.client), ("node", made.node)):
            monkeypatch.setattr(peer.network, "doubt_ways", lambda name=name: doubted.append(name))
        await trio.sleep(5)
        assert doubted == []
        world.break_pipes(*pair(made), silently=True)
        await trio.sleep(LATE_S + PING_EVERY_S / 2 + 0.3)
        assert set(doubted) == {"client", "node"}


async def test_long_messages_under_way_arrive_whole(autojump_clock: MockClock) -> None:
    world = World(bytes_s=1e6)
    async with peers(True, False, world=world) as (node, client):
        mine = await client.pool.get(node.network.address, deadline_s=5)
        message, payload = step(ONE, 2 << 20)
        await mine.send(message, payload)
        for _ in range(3):
            await trio.sleep(0.4)
            world.break_pipes(client.network.peer, node.network.peer)
        await trio.sleep(10)
        assert node.taken == [message]
        assert mine.moves == 3


async def test_where_there_is_no_other_way_both_ends_close_soon(autojump_clock: MockClock) -> None:
    world = World()
    async with session(world) as made:
        world.cut.add(frozenset(pair(made)))
        world.break_pipes(*pair(made))
        await trio.sleep(0.5)
        assert made.mine.closed
        assert not made.theirs.closed  # the other may be on its way
        with pytest.raises(ChannelClosed):
            made.mine.send_now(Close(ONE))
        await trio.sleep(AWAY_S)
        assert made.theirs.closed
        assert made.node.pool.all() == []


async def test_a_channel_does_not_go_on_with_another_process_that_has_the_peers_identity(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with session(world) as made:
        made.node.network.noise_key = bytes(32)
        world.break_pipes(*pair(made))
        await trio.sleep(AWAY_S + 1)
        assert made.mine.closed
        assert made.mine.moves == 0


async def test_a_silent_peer_is_dialled_until_the_channel_is_dead_and_no_longer(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with session(world) as made:
        world.cut.add(frozenset(pair(made)))
        world.break_pipes(*pair(made), silently=True)
        await trio.sleep(DEAD_AFTER_S + 2 * PING_EVERY_S)
        assert made.mine.closed
        assert made.theirs.closed
        dials = made.client.dials
        assert 3 < dials <= RESCUES + 1
        await trio.sleep(30)
        assert made.client.dials == dials


async def test_a_peer_that_hangs_up_is_not_dialled_again(autojump_clock: MockClock) -> None:
    async with session(World()) as made:
        made.theirs.close("enough")
        await trio.sleep(1)
        assert made.mine.closed
        assert made.client.dials == 1
        assert made.client.ended == ["the peer hung up"]


async def test_a_peer_that_breaks_its_pipe_again_and_again_is_given_up(autojump_clock: MockClock) -> None:
    world = World()
    async with session(world) as made:
        for _ in range(RESCUES + 1):
            world.break_pipes(*pair(made))
            await trio.sleep(1)
        assert made.mine.closed
        assert made.client.dials == RESCUES + 1


async def test_nobody_takes_over_a_channel_that_is_not_his_or_that_there_is_not(
    autojump_clock: MockClock,
) -> None:
    world = World()
    async with session(world) as made:
        stranger = world.network()
        for network, name in ((stranger, made.theirs.name), (made.client.network, b"x" * 16)):
            pipe = await network.open_pipe(made.node.network.address, deadline_s=5)
            await pipe.send_all(message_bytes(Resume(name, 0)))
            assert await pipe.receive_some() == b""
        # One that says that it has more than it was sent.
        pipe = await made.client.network.open_pipe(made.node.network.address, deadline_s=5)
        await pipe.send_all(message_bytes(Resume(made.theirs.name, 1 << 40)))
        assert await pipe.receive_some() == b""
        await trio.sleep(2)
        assert made.theirs.moves == 0
        assert made.arrived()


async def test_who_knows_nothing_of_this_has_a_channel_as_ever(autojump_clock: MockClock) -> None:
    """An older peer says no name, and its pongs say nothing of what has come."""
    async with peers(True) as (node,):
        world = node.network._world  # pyright: ignore[reportPrivateUsage]
        pipe = await world.network().open_pipe(node.network.address, deadline_s=5)
        await pipe.send_all(message_bytes(Hello(NEWEST_VERSION)) + message_bytes(Ping(7)))
        heard = b""
        while message_bytes(Pong(7))[9:] not in heard:
            heard += await pipe.receive_some()
        await pipe.aclose()
        await trio.sleep(0.01)
        assert node.ended in (["the peer hung up"], ["the pipe is gone"])


async def test_who_says_nothing_first_is_hung_up_on(autojump_clock: MockClock) -> None:
    async with peers(True) as (node,):
        world = node.network._world  # pyright: ignore[reportPrivateUsage]
        pipe = await world.network().open_pipe(node.network.address, deadline_s=5)
        assert await pipe.receive_some() == b""
        assert node.ended == ["no hello within 5 s"]


async def test_who_has_acknowledged_what_was_never_sent_is_hung_up_on(autojump_clock: MockClock) -> None:
    async with peers(True) as (node,):
        world = node.network._world  # pyright: ignore[reportPrivateUsage]
        pipe = await world.network().open_pipe(node.network.address, deadline_s=5)
        hello = Hello(NEWEST_VERSION, "", b"n" * 16)
        await pipe.send_all(message_bytes(hello) + message_bytes(Pong(7, 1 << 40)))
        while await pipe.receive_some():
            pass
        assert "of the" in node.ended[0]


async def test_for_who_never_says_to_have_anything_nothing_is_kept_for_long(
    autojump_clock: MockClock,
) -> None:
    world = World()
    there = world.network()
    pipe = MovingPipe(await world.network().open_pipe(there.address, deadline_s=5), moves=True)
    pipe.settle(can_move=True)
    await pipe.send_all(b"a step")
    for _ in range(int(TAIL_HELD_S) + 2):
        assert pipe.can_move
        pipe.acknowledge(0)
        await trio.sleep(1)
    pipe.acknowledge(0)
    assert not pipe.can_move
    pipe.acknowledge(0)


async def test_who_says_to_have_more_as_it_comes_may_take_its_time(autojump_clock: MockClock) -> None:
    world = World()
    there = world.network()
    pipe = MovingPipe(await world.network().open_pipe(there.address, deadline_s=5), moves=True)
    pipe.settle(can_move=True)
    await pipe.send_all(bytes(100))
    for received in range(100):
        pipe.acknowledge(received)
        await trio.sleep(1)
    assert pipe.can_move
