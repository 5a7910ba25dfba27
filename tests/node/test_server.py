"""What a node does with what peers send: honest or not, one session never touches another."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import torch
import trio
import trio.testing

from shoal.errors import Busy, ChannelClosed, NotAllowed
from shoal.net.channel import Channel
from shoal.node import sessions as sessions_module
from shoal.testing import byhand
from shoal.testing.byhand import MINE, THEIRS, by_hand
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from shoal.wire.fields import NextHop
from shoal.wire.messages import Close, Failed, Opened, Refused, Reroute
from tests.one_process import KERNELS

WIDTH = 64


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


def peer(swarm, node=0):
    """A stranger with a channel to one node."""
    return by_hand(swarm.world.network(), swarm.networks[node].address)


def an_open(swarm, session=MINE, **changes):
    alike = {"format": "int8", "numerics": "n1/int8/auto/rows"}
    return byhand.an_open(swarm.model.digest, 6, session=session, **alike | changes)


a_step, payload = partial(byhand.a_step, WIDTH), partial(byhand.rows, WIDTH)


@asynccontextmanager
async def one_node(tmp_path, checkpoint, **options):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], **KERNELS | options) as swarm:
        yield swarm
        # After everything that was done to it, the node has its KV back and serves the next honest session.
        with trio.fail_after(25):
            await swarm.nodes[0].server.wait_idle()
        assert swarm.nodes[0].engine.tokens_free == swarm.nodes[0].engine.tokens
        async with swarm.client.session(str(checkpoint), tokens=16) as session:
            assert (await session.step([1, 2, 3])).shape == (3, 300)


async def test_an_error_that_a_client_leads_to_ends_its_request_alone(
    tmp_path, checkpoint, monkeypatch, caplog
):
    async def fail(*_, **__):
        raise UnicodeError("unforeseen")

    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        opened, _ = await me.ask(an_open(swarm))
        assert isinstance(opened, Opened)
        monkeypatch.setattr(swarm.nodes[0].server.channels, "get", fail)
        await me.send(Reroute(MINE, 0, None, NextHop("12D3KooWnobody")))
        with trio.fail_after(25):
            while "unforeseen" not in caplog.text:  # noqa: ASYNC110
                await trio.sleep(0.01)
        monkeypatch.undo()
        await me.send(Close(MINE))


async def test_a_session_is_opened_stepped_and_closed(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        opened, _ = await me.ask(an_open(swarm))
        assert isinstance(opened, Opened)
        result, rows = await me.ask(a_step(), payload())
        assert (result.number, result.hidden.rows, len(rows)) == (1, 1, 4 * WIDTH)
        assert [time.hop for time in result.times] == [0]
        await me.send(Close(MINE))


async def test_a_step_sent_twice_gives_the_same(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        _, once = await me.ask(a_step(), payload())
        _, again = await me.ask(a_step(number=2), payload())
        assert once == again
        await me.send(Close(MINE))


async def test_one_peer_cannot_take_every_session(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint, max_sessions=2) as swarm, peer(swarm) as me:
        for number in range(2):
            assert isinstance((await me.ask(an_open(swarm, bytes([number]) * 16)))[0], Opened)
        refused, _ = await me.ask(an_open(swarm))
        assert refused.code == "busy"


@pytest.mark.parametrize(
    "message", [Opened(MINE, 1), Refused(MINE, "busy", ""), Failed(MINE, None, 0, "busy", "")]
)
async def test_answers_that_nobody_asked_for_change_nothing(tmp_path, checkpoint, message):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        await me.send(message)
        assert (await me.ask(a_step(), payload()))[0].hidden.rows == 1


@pytest.mark.parametrize("data", [b"\x80\x04\x95garbage" * 20, bytes(100), b"GET / HTTP/1.1\r\n\r\n" * 4])
async def test_garbage_costs_its_sender_the_channel_and_nobody_else_anything(tmp_path, checkpoint, data):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        pipe = await swarm.world.network().open_pipe(swarm.networks[0].address, deadline_s=1)
        await pipe.send_all(data)
        with trio.fail_after(25):
            while await pipe.receive_some():
                pass
        assert (await me.ask(a_step(), payload()))[0].hidden.rows == 1


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
                with trio.fail_after(15):
                    await swarm.nodes[0].server.wait_idle()


async def test_a_session_that_is_closed_right_behind_its_opening_leaves_nothing(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        server = swarm.nodes[0].server
        channel = next(c for c in server.channels.all() if c.peer == me.peer)
        await server.handlers.handle(channel, an_open(swarm), b"")  # as they come when both are in one read
        await server.handlers.handle(channel, Close(MINE), b"")
        assert isinstance((await me.ask(an_open(swarm, THEIRS)))[0], Opened)
        await me.send(Close(THEIRS))
        with trio.fail_after(15):
            await server.wait_idle()
        assert server.engine.sessions == 0


async def test_a_next_hop_that_refuses_this_node_is_named(tmp_path, checkpoint, monkeypatch):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:

        async def refused(*_, **__):
            raise NotAllowed("the handshake failed")

        monkeypatch.setattr(swarm.nodes[0].server.channels, "get", refused)
        answer, _ = await me.ask(an_open(swarm, next=NextHop("12D3KooWnext")))
        assert (answer.code, answer.gone) == ("channel_closed", "12D3KooWnext")


@pytest.mark.parametrize("side", ["previous", "next"])
async def test_a_hop_is_never_its_own_neighbour(tmp_path, checkpoint, side):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        itself = swarm.networks[0].address
        beside = {side: itself.peer if side == "previous" else NextHop.of(itself)}
        refused, _ = await me.ask(an_open(swarm, **beside))
        assert (refused.code, refused.gone) == ("not_allowed", None)
        assert isinstance((await me.ask(an_open(swarm)))[0], Opened)
        neighbours = {"previous": None, "next": None} | beside
        rerouted, _ = await me.ask(Reroute(MINE, 0, neighbours["previous"], neighbours["next"]))
        assert not rerouted.kept
        assert (await me.ask(a_step(), payload()))[0].hidden.rows == 1  # and nothing has changed


@pytest.mark.parametrize(
    "error", [NotAllowed("not in the swarm"), Busy("too many dials"), ChannelClosed("gone")]
)
async def test_a_next_hop_that_cannot_be_dialled_is_not_put_in_place(
    tmp_path, checkpoint, monkeypatch, error
):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))

        async def refused(*_, **__):
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(swarm.nodes[0].server.channels, "get", refused)
            rerouted, _ = await me.ask(Reroute(MINE, 0, None, NextHop("12D3KooWnext")))
        assert not rerouted.kept
        assert (await me.ask(a_step(), payload()))[0].hidden.rows == 1
        await me.send(Close(MINE))


async def test_a_route_has_one_change_at_a_time(tmp_path, checkpoint, monkeypatch):
    dialled = trio.Event()
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        get = swarm.nodes[0].server.channels.get

        async def slow(*args, **kwargs):
            await dialled.wait()
            return await get(*args, **kwargs)

        monkeypatch.setattr(swarm.nodes[0].server.channels, "get", slow)
        await me.send(Reroute(MINE, 0, None, NextHop(me.peer)))
        second, _ = await me.ask(Reroute(MINE, 0, None, None))
        assert not second.kept
        dialled.set()
        first, _ = await me.receive()
        assert first.kept
        await me.send(Close(MINE))


async def test_what_is_being_opened_counts_as_if_it_were_open(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint, max_sessions=1) as swarm, peer(swarm) as me:
        silent = NextHop.of(swarm.world.network().address)  # takes a pipe and never says hello
        await me.send(an_open(swarm, next=silent))
        refused, _ = await me.ask(an_open(swarm, THEIRS))
        assert (refused.session, refused.code) == (THEIRS, "busy")


async def test_the_way_from_the_hop_before_is_held_open_and_may_carry_long_steps(
    tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr(sessions_module, "SENDERS_KEPT", 1)
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me, peer(swarm) as before:
        server = swarm.nodes[0].server
        sessions = server._sessions
        (way,) = (channel for channel in server.channels.all() if channel.peer == before.peer)
        assert not sessions.holds(way)
        await me.ask(an_open(swarm, previous=before.peer))
        for number in range(2):  # names that are made up push nobody out
            await me.ask(an_open(swarm, THEIRS, previous=f"12D3KooW{number}"))
            await me.send(Close(THEIRS))
        assert sessions.holds(way)
        assert sessions.knows(before.peer)
        await me.send(Close(MINE))
        with trio.fail_after(15):
            await server.wait_idle()
        assert not sessions.holds(way)


async def test_a_long_prefill_of_one_session_does_not_lose_anothers_steps(tmp_path, checkpoint):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me, peer(swarm) as other:
        await me.ask(an_open(swarm, tokens=200))
        await other.ask(an_open(swarm, THEIRS))
        await me.send(a_step(tokens=200, rows=200), payload(200))
        assert (await other.ask(a_step(THEIRS), payload()))[0].hidden.rows == 1
        assert (await me.receive())[0].hidden.rows == 1


async def test_steps_wait_at_a_hop_while_the_way_onward_is_full(tmp_path, checkpoint, monkeypatch):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        room = trio.Event()
        monkeypatch.setattr(Channel, "full", property(lambda _: not room.is_set()))
        monkeypatch.setattr(Channel, "wait_room", lambda _: room.wait())
        done = swarm.nodes[0].server.load.steps
        me.channel.send_now(a_step(), payload())
        me.channel.send_now(a_step(number=2, position=2), payload())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert swarm.nodes[0].server.load.steps == done
        room.set()
        assert [(await me.receive())[0].number for _ in range(2)] == [1, 2]
        await me.send(Close(MINE))


async def test_a_step_that_is_held_may_be_superseded_by_one_that_finds_room(
    tmp_path, checkpoint, monkeypatch
):
    async with one_node(tmp_path, checkpoint) as swarm, peer(swarm) as me:
        await me.ask(an_open(swarm))
        full, room = [True], trio.Event()
        monkeypatch.setattr(Channel, "full", property(lambda _: full[0]))
        monkeypatch.setattr(Channel, "wait_room", lambda _: room.wait())
        me.channel.send_now(a_step(), payload())
        await trio.testing.wait_all_tasks_blocked(0.05)
        full[0] = False
        me.channel.send_now(a_step(number=2), payload())  # send would wait for room, too
        assert (await me.receive())[0].number == 2
        room.set()
        assert (await me.ask(a_step(number=3), payload()))[0].number == 3
        await me.send(Close(MINE))


async def test_a_node_that_drains_takes_nothing_new_and_lets_the_rest_end(tmp_path, checkpoint):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], **KERNELS) as swarm,
        peer(swarm) as me,
    ):
        node = swarm.nodes[0]
        await me.ask(an_open(swarm))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.drain)
            await trio.testing.wait_all_tasks_blocked(0.05)
            async with peer(swarm) as late:
                refused, _ = await late.ask(an_open(swarm, THEIRS))
                assert refused.code == "busy"
            assert swarm.client.announcements() == []
            assert (await me.ask(a_step(), payload()))[0].hidden.rows == 1
            await me.send(Close(MINE))
        with pytest.raises(ChannelClosed):
            swarm.kill(0)
            while True:
                await me.send(Close(MINE))
                await trio.sleep(0.01)
