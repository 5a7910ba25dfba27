"""What a node does with what peers send: honest or not, one session never touches another."""

from __future__ import annotations

import math
import struct
from contextlib import asynccontextmanager

import msgspec
import pytest
import torch
import trio
import trio.testing

from shoal.errors import ChannelClosed
from shoal.net.channel import Channel
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from shoal.wire.messages import Close, Failed, NextHop, Open, Opened, Refused, Step

WIDTH = 64
MINE, THEIRS = b"m" * 16, b"t" * 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


class Peer:
    """Somebody who speaks the protocol by hand."""

    def __init__(self, network, channel: Channel, inbox):
        self.network = network
        self.channel = channel
        self._inbox = inbox

    async def send(self, message, payload=b""):
        await self.channel.send(message, payload)

    async def receive(self):
        with trio.fail_after(5):
            return await self._inbox.receive()

    async def ask(self, message, payload=b""):
        await self.send(message, payload)
        return await self.receive()


@asynccontextmanager
async def peer(swarm, node=0):
    """A stranger with a channel to one node."""
    network = swarm.world.network()
    pipe = await network.open_pipe(swarm.networks[node].address, deadline_s=1)
    channel = Channel(pipe)
    put, inbox = trio.open_memory_channel(math.inf)

    async def take(_, message, payload):
        await put.send((message, payload))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, take)
        await channel.wait_ready(2)
        yield Peer(network, channel, inbox)
        channel.close()


def an_open(swarm, session=MINE, **changes):
    first = Open(session, swarm.model.digest, "fp32", 0, 6, 32, 0, None, None)
    return msgspec.structs.replace(first, **changes)


def a_step(session=MINE, **changes):
    return msgspec.structs.replace(Step(session, 1, 0, 2, 1, "float32", 2, WIDTH), **changes)


def payload(rows=2, value=0.25):
    return struct.pack(f"<{rows * WIDTH}f", *[value] * (rows * WIDTH))


@asynccontextmanager
async def one_node(tmp_path, checkpoint, **options):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], **options) as swarm:
        yield swarm
        # After everything that was done to it, the node has its KV back and serves the next honest session.
        with trio.fail_after(5):
            await swarm.nodes[0].server.wait_idle()
        assert swarm.nodes[0].engine.tokens_free == swarm.nodes[0].engine.tokens
        async with swarm.client.session(str(checkpoint), tokens=16) as session:
            assert (await session.step([1, 2, 3])).shape == (3, 300)


async def test_a_session_is_opened_stepped_and_closed(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        opened, _ = await me.ask(an_open(swarm))
        assert isinstance(opened, Opened)
        result, rows = await me.ask(a_step(), payload())
        assert (result.number, result.rows, len(rows)) == (1, 1, 4 * WIDTH)
        assert [time.hop for time in result.times] == [0]
        await me.send(Close(MINE))


async def test_a_step_sent_twice_gives_the_same(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        _, once = await me.ask(a_step(), payload())
        _, again = await me.ask(a_step(number=2), payload())
        assert once == again
        await me.send(Close(MINE))


@pytest.mark.parametrize(
    ("what", "changes", "code"),
    [
        ("another version of the model", {"digest": "sha256:" + "0" * 64}, "digest_mismatch"),
        ("a block outside of the span", {"end": 7}, "not_allowed"),
        ("another format", {"format": "bf16"}, "not_allowed"),
        ("more KV than there is", {"tokens": 1 << 20}, "busy"),
        ("a next hop that is not there", {"next": NextHop("12D3KooWnobody")}, "channel_closed"),
    ],
)
async def test_what_is_not_offered_is_refused_by_name(tmp_path, checkpoint, what, changes, code):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        refused, _ = await me.ask(an_open(swarm, **changes))
        assert isinstance(refused, Refused), what
        assert refused.code == code
        assert refused.tokens_free == swarm.nodes[0].engine.tokens


async def test_one_peer_cannot_take_every_session(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint, max_sessions=2) as swarm, peer(swarm) as me:
        for number in range(2):
            assert isinstance((await me.ask(an_open(swarm, bytes([number]) * 16)))[0], Opened)
        refused, _ = await me.ask(an_open(swarm))
        assert refused.code == "busy"


async def test_a_session_id_that_is_taken_is_refused_and_the_first_goes_on(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me, peer(swarm) as other:
        await me.ask(an_open(swarm))
        refused, _ = await other.ask(an_open(swarm))
        assert isinstance(refused, Refused)
        assert (await me.ask(a_step(), payload()))[0].rows == 1


async def test_nobody_reads_or_ends_another_clients_session(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me, peer(swarm) as other:
        await me.ask(an_open(swarm))
        failed, _ = await other.ask(a_step(), payload())
        unknown, _ = await other.ask(a_step(THEIRS), payload())
        assert failed.code == unknown.code == "unknown_session"
        assert failed.message == unknown.message
        await other.send(Close(MINE))
        assert (await me.ask(a_step(), payload()))[0].rows == 1


@pytest.mark.parametrize(
    ("what", "step", "data", "code"),
    [
        ("a gap", a_step(position=5), payload(), "position_gap"),
        ("another width", a_step(width=WIDTH // 2, tokens=4, rows=4), payload(), "remote_protocol"),
        ("more than was reserved", a_step(tokens=33, rows=33), payload(33), "remote_protocol"),
        ("NaN", a_step(), payload(value=math.nan), "step_failed"),
        ("infinity", a_step(), payload(value=math.inf), "step_failed"),
    ],
)
async def test_a_step_that_cannot_be_fails_and_the_session_goes_on(
    tmp_path, checkpoint, what, step, data, code
):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        _, expected = await me.ask(a_step(), payload())
        failed, _ = await me.ask(msgspec.structs.replace(step, number=2), data)
        assert isinstance(failed, Failed), what
        assert failed.code == code
        assert (await me.ask(a_step(number=3), payload()))[1] == expected


@pytest.mark.parametrize(
    "message", [Opened(MINE, 1), Refused(MINE, "busy", ""), Failed(MINE, None, 0, "busy", "")]
)
async def test_answers_that_nobody_asked_for_change_nothing(tmp_path, checkpoint, message):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        await me.send(message)
        assert (await me.ask(a_step(), payload()))[0].rows == 1


@pytest.mark.parametrize("data", [b"\x80\x04\x95garbage" * 20, bytes(100), b"GET / HTTP/1.1\r\n\r\n" * 4])
async def test_garbage_costs_its_sender_the_channel_and_nobody_else_anything(tmp_path, checkpoint, data):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        pipe = await swarm.world.network().open_pipe(swarm.networks[0].address, deadline_s=1)
        await pipe.send_all(data)
        with trio.fail_after(5):
            while await pipe.receive_some():
                pass
        assert (await me.ask(a_step(), payload()))[0].rows == 1


async def test_a_channel_that_ends_frees_its_sessions(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        assert swarm.nodes[0].engine.sessions == 1


@pytest.mark.parametrize("how", ["close", "hang up"])
async def test_a_client_that_gives_up_while_a_session_opens_leaves_nothing(tmp_path, checkpoint, how):
    async with one_node(tmp_path, checkpoint) as swarm:
        silent = swarm.world.network()  # takes a pipe and never says hello
        async with peer(swarm) as me:
            await me.send(an_open(swarm, next=NextHop.of(silent.address)))
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert swarm.nodes[0].engine.sessions == 1
            if how == "close":
                await me.send(Close(MINE))
                with trio.fail_after(2):
                    await swarm.nodes[0].server.wait_idle()


async def test_a_session_that_is_closed_right_behind_its_opening_leaves_nothing(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        server = swarm.nodes[0].server
        channel = next(c for c in server.channels.all() if c.peer == me.network.peer)
        await server._handle(channel, an_open(swarm), b"")  # as they come when both are in one read
        await server._handle(channel, Close(MINE), b"")
        assert isinstance((await me.ask(an_open(swarm, THEIRS)))[0], Opened)
        await me.send(Close(THEIRS))
        with trio.fail_after(2):
            await server.wait_idle()
        assert server.engine.sessions == 0


async def test_a_long_prefill_of_one_session_does_not_lose_anothers_steps(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me, peer(swarm) as other:
        await me.ask(an_open(swarm, tokens=200))
        await other.ask(an_open(swarm, THEIRS))
        await me.send(a_step(tokens=200, rows=200), payload(200))
        assert (await other.ask(a_step(THEIRS), payload()))[0].rows == 1
        assert (await me.receive())[0].rows == 1


async def test_steps_wait_at_a_hop_while_the_way_onward_is_full(tmp_path, checkpoint, monkeypatch):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        room = trio.Event()
        monkeypatch.setattr(Channel, "full", property(lambda _: not room.is_set()))
        monkeypatch.setattr(Channel, "wait_room", lambda _: room.wait())
        done = swarm.nodes[0].server.steps
        me.channel.post(a_step(), payload())
        me.channel.post(a_step(number=2), payload())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert swarm.nodes[0].server.steps == done
        room.set()
        assert [(await me.receive())[0].number for _ in range(2)] == [1, 2]
        await me.send(Close(MINE))


async def test_a_node_that_drains_takes_nothing_new_and_lets_the_rest_end(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)]) as swarm, peer(swarm) as me:
        node = swarm.nodes[0]
        await me.ask(an_open(swarm))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.drain)
            await trio.testing.wait_all_tasks_blocked(0.05)
            async with peer(swarm) as late:
                refused, _ = await late.ask(an_open(swarm, THEIRS))
                assert refused.code == "busy"
            assert swarm.client.announcements() == []
            assert (await me.ask(a_step(), payload()))[0].rows == 1
            await me.send(Close(MINE))
        with pytest.raises(ChannelClosed):
            swarm.kill(0)
            while True:
                await me.send(Close(MINE))
                await trio.sleep(0.01)
