"""A node that chooses its span moves to where the swarm needs it more, and nobody notices."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
import trio
from msgspec import structs

from shoal.errors import OutOfResources
from shoal.node.node import load_served_span
from shoal.node.placing.choice import PlacedModel, reservation, serving_peers
from shoal.node.placing.placement import keep_place, pick_span
from shoal.node.speed import Speed, measure_speed
from shoal.swarm.announcement import LEAST_BYTES_S, ROW_ELEMENT_BYTES, Announcement
from shoal.testing import swarm as testing
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Numerics, Span
from tests.one_process import KERNELS, OneProcess

LEFT, RIGHT = Span(0, 3), Span(3, 6)
PROMPT = list(range(5, 30))
INT8 = Numerics("int8", "auto", "any")
SOON = {"look_every_s": 0.1, "settle_s": 0.3, "rest_s": 60.0}


def memory_swarm(home, checkpoint, spans):
    """A swarm that gives what one process gives."""
    return testing.memory_swarm(home, checkpoint, spans, **KERNELS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, checkpoint):
    return OneProcess(tmp_path_factory.mktemp("whole"), checkpoint)


@pytest.fixture(autouse=True)
def alike(monkeypatch):
    """Nodes of the same speed: what is measured on a busy machine would decide who moves."""
    monkeypatch.setattr("shoal.testing.swarm.measured_once", lambda runner, pool: Speed(0.0, 100.0))


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


async def a_move(nursery, node):
    """Let the node look around until it has moved."""
    done = trio.Event()
    with trio.fail_after(20):
        nursery.start_soon(lambda: keep_place(node, lambda _: done.set(), **SOON))
        await done.wait()


async def test_a_node_moves_and_its_sessions_go_on_bit_for_bit(home, checkpoint, whole):
    expected = whole.logits([PROMPT, *([token] for token in whole.greedy(PROMPT, 5))])
    async with memory_swarm(home, checkpoint, [LEFT, LEFT, RIGHT]) as swarm, trio.open_nursery() as nursery:
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            first = session.ring.route[0].address.peer
            node = next(n for n in swarm.nodes if n.member.network.peer == first)
            assert np.array_equal(await session.step(PROMPT), expected[0])
            old = node.engine
            await a_move(nursery, node)
            assert node.span != LEFT
            assert old.sessions == 1
            for before, after in pairwise(expected):
                assert np.array_equal(await session.step([int(before[-1].argmax())]), after)
            assert session.ring.route[0].address.peer == first
            assert not session.ring.lost
        with trio.fail_after(25):
            await node.server.wait_unused(old)
        assert old.tokens_free == old.tokens
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            assert np.array_equal(await session.step(PROMPT), expected[0])
        nursery.cancel_scope.cancel()


async def test_blocks_that_nobody_serves_get_a_node_and_just_one(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm, trio.open_nursery() as nursery:
        for node in swarm.nodes:
            nursery.start_soon(lambda node=node: keep_place(node, lambda _: None, **SOON))
        with trio.fail_after(20):
            while 0 in swarm.client.coverage(swarm.model.digest):
                await swarm.client.member.wait_changed()
        await trio.sleep(1)
        assert sorted(node.span for node in swarm.nodes) == [LEFT, RIGHT]
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            assert np.array_equal(await session.step(PROMPT), whole.logits([PROMPT])[0])
        nursery.cancel_scope.cancel()


async def test_a_lost_block_is_not_left_until_the_next_look(home, checkpoint, monkeypatch):
    monkeypatch.setattr("shoal.node.placing.placement.HOLES_EVERY_S", 0.1)
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm, trio.open_nursery() as nursery:
        done = trio.Event()
        rarely = {"look_every_s": 1e4, "settle_s": 0.3, "rest_s": 60.0}
        nursery.start_soon(lambda: keep_place(swarm.nodes[0], lambda _: done.set(), **rarely))
        with trio.fail_after(20):
            await done.wait()
        assert swarm.nodes[0].span == RIGHT
        nursery.cancel_scope.cancel()


async def test_blocks_that_only_a_liar_serves_are_not_left_until_the_next_look(home, checkpoint, monkeypatch):
    monkeypatch.setattr("shoal.node.placing.placement.HOLES_EVERY_S", 0.1)
    spans = [LEFT, LEFT, RIGHT]
    async with memory_swarm(home, checkpoint, spans) as swarm, trio.open_nursery() as nursery:
        liars = frozenset({swarm.nodes[2].member.network.peer})
        monkeypatch.setattr("shoal.node.placing.placement.AuditBook.liars", lambda *_: liars)
        done = trio.Event()
        rarely = {"look_every_s": 1e4, "settle_s": 0.3, "rest_s": 60.0}
        nursery.start_soon(lambda: keep_place(swarm.nodes[0], lambda _: done.set(), **rarely))
        with trio.fail_after(20):
            await done.wait()
        assert swarm.nodes[0].span == RIGHT
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("coming", [False, True])
async def test_a_node_stays_when_those_went_meanwhile_who_served_its_blocks_too(
    home, checkpoint, monkeypatch, coming
):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm, trio.open_nursery() as nursery:
        stays, goes = swarm.nodes

        async def load(*given):
            await goes.member.leave()
            with trio.fail_after(10):
                while stays.member.directory.get(goes.member.network.peer) is not None:
                    await stays.member.wait_changed()
            if coming:
                hear_of_reservation(swarm, stays.member, LEFT)
            loaded.set()
            return await load_served_span(*given)

        loaded = trio.Event()
        monkeypatch.setattr("shoal.node.placing.placement.load_served_span", load)
        nursery.start_soon(lambda: keep_place(stays, pytest.fail, **SOON))
        with trio.fail_after(20):
            await loaded.wait()
            while stays.going is not None:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.05)
        assert stays.span == LEFT
        nursery.cancel_scope.cancel()


async def test_a_node_does_not_leave_its_blocks_to_one_that_only_loads_them(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT]) as swarm, trio.open_nursery() as nursery:
        node = swarm.nodes[0]
        hear_of_reservation(swarm, node.member, LEFT)
        nursery.start_soon(lambda: keep_place(node, pytest.fail, **SOON))
        await trio.sleep(1.5)
        assert node.span == LEFT
        nursery.cancel_scope.cancel()


async def test_a_client_takes_no_blocks_for_served_that_are_only_going_to_be(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT]) as swarm:
        hear_of_reservation(swarm, swarm.client.member, RIGHT)
        with trio.move_on_after(0.5) as waited:
            await swarm.client.rings.finder.served_numerics(swarm.model.shape, Span(0, 6))
        assert waited.cancelled_caught


def hear_of_reservation(swarm, member, span):
    """The member hears of one that loads its first span."""
    peer, wall = swarm.world.network().peer, member.clock.wall()
    served = reservation(PlacedModel(swarm.model.shape, INT8, ()), span)
    word = Announcement(peer, 1, wall, wall + 30, ("/memory/x",), (), served, "")
    member.directory.take(word, b"", member.now(), wall)


async def test_a_node_says_where_it_is_going_before_it_is_there(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm, trio.open_nursery() as nursery:
        said = []

        async def listen():
            while True:
                await swarm.client.member.wait_changed()
                served = [a.served for a in swarm.client.announcements() if a.served]
                said.extend((s.span, s.going) for s in served if s.going or s.span == RIGHT)

        nursery.start_soon(listen)
        await a_move(nursery, swarm.nodes[0])
        with trio.fail_after(25):
            while (RIGHT, None) not in said:  # noqa: ASYNC110  the listener hears it
                await trio.sleep(0.02)
        assert said[0] == (LEFT, RIGHT)
        nursery.cancel_scope.cancel()


async def test_a_node_without_memory_for_both_spans_stays(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT, RIGHT]) as swarm, trio.open_nursery() as nursery:
        node = swarm.nodes[0]
        node.settings = replace(node.settings, memory=node.engine.runner.tensor_bytes)
        nursery.start_soon(lambda: keep_place(node, pytest.fail, **SOON))
        await trio.sleep(0.5)
        assert node.fits == 0
        assert node.span == LEFT
        nursery.cancel_scope.cancel()


async def test_a_joining_node_takes_the_weakest_blocks(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT, RIGHT]) as swarm:
        member = swarm.client.member
        per_block = swarm.nodes[0].engine.runner.tensor_bytes // 3
        assert pick_span(swarm.model, INT8, round(3.1 * per_block / 0.75), member) == RIGHT
        with pytest.raises(OutOfResources):
            pick_span(swarm.model, INT8, 1, member)


async def test_what_a_peer_says_of_its_link_counts_where_nodes_are_placed(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT]) as swarm:
        member, peer = swarm.client.member, swarm.world.network().peer
        placed, wall = PlacedModel(swarm.model.shape, INT8, ()), member.clock.wall()
        row_bytes = ROW_ELEMENT_BYTES * swarm.model.shape.hidden_size
        cases = [(0.0, math.inf), (1e6, 1e6 / row_bytes), (1e-9, LEAST_BYTES_S / row_bytes)]
        for number, (link, tokens_s) in enumerate(cases):
            served = structs.replace(swarm.nodes[0].served(), link_bytes_s=link)
            word = Announcement(peer, number, wall, wall + 30, ("/memory/x",), (), served, "")
            member.directory.take(word, b"", member.now(), wall)
            assert tokens_s in [one.carries for one in serving_peers(placed, member)]


async def test_a_node_measures_how_many_blocks_it_computes_in_a_second(home, checkpoint, monkeypatch):
    monkeypatch.setattr("shoal.testing.swarm.measured_once", measure_speed)
    async with memory_swarm(home, checkpoint, [LEFT]) as swarm:
        node = swarm.nodes[0]
        assert 1 < node.served().speed < 1e6
        assert node.engine.pool.taken == 0
        assert node.engine.tokens_free == node.engine.tokens


async def test_who_lies_about_how_many_blocks_there_are_places_nobody(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm:
        member, liar = swarm.client.member, swarm.world.network().peer
        served = swarm.nodes[0].served()
        wall = member.clock.wall()
        for number, (start, end) in enumerate(((100, 200), (3, 6))):
            lie = structs.replace(served, n_blocks=16384, start=start, end=end, next_end=9)
            word = Announcement(liar, number, wall, wall + 30, ("/memory/liar",), (), lie, "")
            member.directory.take(word, b"", member.now(), wall)
            assert pick_span(swarm.model, INT8, 1 << 30, member) == Span(0, 6)
            per_block = swarm.nodes[0].engine.runner.tensor_bytes // 3
            assert pick_span(swarm.model, INT8, round(3.1 * per_block / 0.75), member) == RIGHT


async def test_a_node_that_cannot_load_the_span_it_wanted_says_that_it_stays(home, checkpoint, monkeypatch):
    async def full(*_):
        raise OutOfResources("the disk is full")

    monkeypatch.setattr("shoal.node.placing.placement.load_served_span", full)
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: keep_place(swarm.nodes[0], pytest.fail, **SOON))
        peer = swarm.networks[0].peer

        async def heard(going):
            with trio.fail_after(10):
                while swarm.client.member.directory.get(peer).served.going != going:
                    await swarm.client.member.wait_changed()

        await heard(RIGHT)
        await heard(None)
        assert swarm.nodes[0].span == LEFT
        nursery.cancel_scope.cancel()


async def test_a_node_that_has_paused_serves_nobody_so_another_takes_its_blocks(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT, RIGHT]) as swarm, trio.open_nursery() as nursery:
        mover, paused = swarm.nodes[0], swarm.nodes[2]
        paused.server.paused = True
        await paused.member.announce()
        await a_move(nursery, mover)
        assert mover.span == RIGHT
        nursery.cancel_scope.cancel()


async def test_a_node_that_gives_way_to_its_owner_does_not_load_another_span(home, checkpoint):
    async with memory_swarm(home, checkpoint, [LEFT, LEFT]) as swarm, trio.open_nursery() as nursery:
        node = swarm.nodes[0]
        node.server.share = 0.25
        nursery.start_soon(lambda: keep_place(node, lambda _: None, **SOON))
        await trio.sleep(3)
        assert node.span == LEFT
        node.server.share = 1.0
        with trio.fail_after(20):
            while node.span == LEFT:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
