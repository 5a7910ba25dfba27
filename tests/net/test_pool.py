"""The channels of a peer: one dial for many callers, limits on those of others, and nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed
from shoal.net import pool as pool_module
from shoal.net.channel import HELLO_WITHIN_S, Channel
from shoal.net.identity import Identity
from shoal.net.link_speed import ENOUGH
from shoal.net.moving.resume import message_bytes
from shoal.net.pool import PER_PEER_LIMIT, ChannelPool
from shoal.testing.memory import MemoryNetwork, MemoryPipe, World
from shoal.types import PeerAddress
from shoal.wire.messages import NEWEST_VERSION, Close, Hello, Message, Step
from shoal.wire.payload import hidden_states

SESSION = b"s" * 16


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


@dataclass
class Peer:
    """A network, its pool, and what the pool told."""

    network: MemoryNetwork
    taken: list[Message] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    dials: int = 0
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __post_init__(self) -> None:
        self.pool = ChannelPool(self.network, self._take, lambda _, reason: self.ended.append(reason))
        open_pipe = self.network.open_pipe

        async def counted(address: PeerAddress, *, deadline_s: float):
            self.dials += 1
            await trio.sleep(0.1)
            return await open_pipe(address, deadline_s=deadline_s)

        self.network.open_pipe = counted

    async def _take(self, _: Channel, message: Message, __: bytes) -> None:
        self.taken.append(message)

    async def run(self, *, accept: bool, task_status: trio.TaskStatus[None]) -> None:
        with self.scope:
            await self.pool.run(accept=accept, task_status=task_status)


@asynccontextmanager
async def peers(*accept: bool, world: World | None = None) -> AsyncGenerator[list[Peer]]:
    """Peers of one world, their pools running."""
    world = world or World()
    found = [Peer(world.network()) for _ in accept]
    async with trio.open_nursery() as nursery:
        for peer, accepts in zip(found, accept, strict=True):

            async def run(peer: Peer = peer, accepts: bool = accepts, *, task_status) -> None:
                await peer.run(accept=accepts, task_status=task_status)

            await nursery.start(run)
        yield found
        nursery.cancel_scope.cancel()
    assert all(peer.pool.all() == [] for peer in found)


async def test_many_callers_share_one_dial(autojump_clock: MockClock):
    async with peers(True, False) as (node, client):
        channels: list[Channel] = []

        async def get() -> None:
            channels.append(await client.pool.get(node.network.address, deadline_s=5))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(get)
        assert client.dials == 1
        assert len(set(channels)) == 1
        assert client.pool.all() == channels[:1]
        await channels[0].send(Close(SESSION))
        await trio.sleep(0.1)
        assert node.taken == [Close(SESSION)]


async def test_a_channel_that_the_peer_opened_is_used_for_the_way_back(autojump_clock: MockClock):
    async with peers(True, False) as (node, client):
        await client.pool.get(node.network.address, deadline_s=5)
        back = await node.pool.get(client.network.address, deadline_s=5)
        assert node.dials == 0
        await back.send(Close(SESSION))
        await trio.sleep(0.1)
        assert client.taken == [Close(SESSION)]


async def test_who_ends_can_wait_until_what_was_sent_has_left(autojump_clock: MockClock):
    async with peers(True, False, world=World(bytes_s=1e6)) as (node, client):
        channel = await client.pool.get(node.network.address, deadline_s=5)
        step = Step(SESSION, 1, 0, 256, 0, hidden_states("float32", 256, 1024))
        await channel.send(step, bytes(1 << 20))
        await channel.send(Close(SESSION))
        began = trio.current_time()
        await client.pool.wait_sent(0.1)
        assert trio.current_time() - began == pytest.approx(0.1)  # and no longer
        await client.pool.wait_sent(5)
        client.scope.cancel()
        await trio.sleep(2)
        assert [type(message) for message in node.taken] == [Step, Close]


async def test_it_says_how_fast_its_ways_are_also_when_none_is_left(autojump_clock: MockClock):
    async with peers(True, False, world=World(bytes_s=1e6)) as (node, client):
        channel = await client.pool.get(node.network.address, deadline_s=5)
        assert client.pool.bytes_s == 0
        for _ in range(ENOUGH):
            step = Step(SESSION, 1, 0, 256, 0, hidden_states("float32", 256, 1024))
            await channel.send(step, bytes(1 << 20))
            await trio.sleep(10)
        assert client.pool.bytes_s == pytest.approx(1e6, rel=0.15)
        assert node.pool.bytes_s == 0
        channel.close("enough")
        await trio.sleep(0.1)
        assert client.pool.all() == []
        assert client.pool.bytes_s == pytest.approx(1e6, rel=0.15)


async def test_after_a_loss_it_dials_again_and_says_what_was_lost(autojump_clock: MockClock):
    async with peers(True, False) as (node, client):
        first = await client.pool.get(node.network.address, deadline_s=5)
        first.close("enough")
        await trio.sleep(0.1)
        assert (client.ended, node.ended) == (["enough"], ["the peer hung up"])
        second = await client.pool.get(node.network.address, deadline_s=5)
        assert second is not first
        assert client.dials == 2


async def test_a_caller_that_gives_up_spoils_nothing_for_the_others(autojump_clock: MockClock):
    async with peers(True, False) as (node, client):
        with trio.move_on_after(0.05) as gave_up:
            await client.pool.get(node.network.address, deadline_s=5)
        assert gave_up.cancelled_caught
        assert not (await client.pool.get(node.network.address, deadline_s=5)).closed


async def test_a_caller_without_time_ends_no_channel_that_another_waits_for(autojump_clock: MockClock):
    world = World()
    async with peers(False, world=world) as (client,), trio.open_nursery() as nursery:
        late = Peer(world.network())

        async def hasty() -> None:
            await trio.sleep(0.5)
            with pytest.raises(ChannelClosed):
                await client.pool.get(late.network.address, deadline_s=0.5)

        async def wake() -> None:
            await trio.sleep(2)
            await nursery.start(partial(late.run, accept=True))

        nursery.start_soon(hasty)
        nursery.start_soon(wake)
        channel = await client.pool.get(late.network.address, deadline_s=5)
        assert not channel.closed
        assert client.dials == 1
        nursery.cancel_scope.cancel()


async def test_who_cannot_be_reached_is_an_error_for_every_caller(autojump_clock: MockClock):
    async with peers(False) as (client,):
        gone = PeerAddress(Identity.ephemeral().peer)
        errors: list[ChannelClosed] = []

        async def get() -> None:
            with pytest.raises(ChannelClosed) as caught:
                await client.pool.get(gone, deadline_s=5)
            errors.append(caught.value)

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(get)
        assert len(errors) == 5
        assert len(client.pool._dialling) == 0


async def test_a_peer_that_says_no_hello_is_an_error_within_the_deadline(autojump_clock: MockClock):
    world = World()
    async with peers(False, world=world) as (client,):
        mute = world.network()  # accepts nothing, so its pipe waits with nobody behind it
        start = trio.current_time()
        with pytest.raises(ChannelClosed):
            await client.pool.get(mute.address, deadline_s=2)
        assert trio.current_time() - start <= 2.2
        await trio.sleep(HELLO_WITHIN_S)
        assert client.pool.all() == []


async def test_a_pool_that_is_not_running_says_so():
    idle = Peer(World().network())
    with pytest.raises(ChannelClosed, match="not running"):
        await idle.pool.get(PeerAddress(Identity.ephemeral().peer), deadline_s=1)


async def test_one_peer_holds_only_so_many_channels_open(autojump_clock: MockClock):
    world = World()
    async with peers(True, world=world) as (node,):
        greedy, honest = world.network(), Peer(world.network())
        pipes = [
            await greedy.open_pipe(node.network.address, deadline_s=5) for _ in range(PER_PEER_LIMIT + 5)
        ]
        await trio.sleep(0.1)
        assert len(node.pool.all()) == PER_PEER_LIMIT
        await pipes[0].send_all(message_bytes(Hello(NEWEST_VERSION)))
        assert await pipes[0].receive_some() != b""
        assert [await pipe.receive_some() for pipe in pipes[PER_PEER_LIMIT:]] == [b""] * 5
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: honest.run(accept=False, task_status=task_status))
            assert not (await honest.pool.get(node.network.address, deadline_s=5)).closed
            nursery.cancel_scope.cancel()


async def crowd_of(world: World, node: Peer, count: int, host: str = "") -> list[MemoryPipe]:
    """Pipes of so many strangers, one after the other, all of whom come from one host."""
    pipes: list[MemoryPipe] = []
    for _ in range(count):
        stranger = world.network()
        stranger.host = host
        pipes.append(await stranger.open_pipe(node.network.address, deadline_s=5))
        await trio.sleep(0.2)
    return pipes


async def hung_up(pipe: MemoryPipe) -> bool:
    """Whether the node has closed it; what it said before does not matter."""
    with trio.move_on_after(0.01):
        while await pipe.receive_some():
            pass
        return True
    return False


async def test_when_every_place_is_taken_the_longest_idle_stranger_makes_room(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "CHANNELS_LIMIT", 3)
    world = World()
    async with peers(True, world=world) as (node,):
        pipes = await crowd_of(world, node, 5)
        assert len(node.pool.all()) == 3
        assert [await hung_up(pipe) for pipe in pipes] == [True, True, False, False, False]
        assert node.ended == ["others need its place, and no session does"] * 2


async def test_who_is_known_or_in_a_session_keeps_its_place(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "CHANNELS_LIMIT", 3)
    world = World()
    async with peers(True, world=world) as (node,):
        pipes = await crowd_of(world, node, 3)
        in_session, known, _ = node.pool.all()
        node.pool._held = lambda channel: channel is in_session
        node.pool._known = lambda peer: peer == known.peer
        pipes += await crowd_of(world, node, 2)
        assert {in_session, known} < set(node.pool.all())
        assert [await hung_up(pipe) for pipe in pipes] == [False, False, True, True, False]


async def test_where_sessions_need_every_channel_one_more_is_refused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "CHANNELS_LIMIT", 2)
    world = World()
    async with peers(True, world=world) as (node,):
        node.pool._held = lambda _: True
        pipes = await crowd_of(world, node, 3)
        assert [await hung_up(pipe) for pipe in pipes] == [False, False, True]


async def test_one_networks_machines_take_places_from_each_other_alone(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(pool_module, "PER_NETWORK_LIMIT", 2)
    world = World()
    async with peers(True, world=world) as (node,):
        others = await crowd_of(world, node, 1, "198.51.100.1")
        crowd = await crowd_of(world, node, 2, "192.0.2.1") + await crowd_of(world, node, 2, "192.0.2.2")
        assert [await hung_up(pipe) for pipe in crowd] == [True, True, False, False]
        assert not await hung_up(others[0])


async def test_a_peer_that_dies_ends_its_channels(autojump_clock: MockClock):
    world = World()
    async with peers(True, False, world=world) as (node, client):
        channel = await client.pool.get(node.network.address, deadline_s=5)
        world.kill(node.network.peer)
        await trio.sleep(0.2)  # it has looked for another way
        assert channel.closed
        assert client.pool.all() == []
        assert len(client.ended) == 1


async def test_a_channel_that_we_dialled_and_nobody_uses_is_closed_unless_it_is_held(
    autojump_clock: MockClock,
):
    async with peers(True, False) as (node, client):
        await client.pool.get(node.network.address, deadline_s=5)
        await trio.sleep(pool_module.IDLE_S / 2)
        assert len(client.pool.all()) == 1
        await trio.sleep(pool_module.IDLE_S)
        assert client.pool.all() == []
        assert "a while" in client.ended[0]
        client.pool._held = lambda _: True
        await client.pool.get(node.network.address, deadline_s=5)
        await trio.sleep(3 * pool_module.IDLE_S)
        assert len(client.pool.all()) == 1


async def test_a_pool_that_ends_while_it_dials_leaves_no_pipe(autojump_clock: MockClock):
    async with peers(True, False) as (node, client):
        async with trio.open_nursery() as nursery:

            async def dial() -> None:
                with pytest.raises(ChannelClosed):
                    await client.pool.get(node.network.address, deadline_s=5)

            nursery.start_soon(dial)
            await trio.sleep(0.05)
            client.scope.cancel()
        await trio.sleep(0.2)
        assert node.pool.all() == []
