"""Rings over parts of a model: a client may run the other blocks itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import trio

from shoal.client.ring import route_finder, suspects
from shoal.client.ring.hop import HopLost, RouteHop
from shoal.client.ring.ring import Ring
from shoal.client.ring.rings import NEWCOMER_OPENS_S
from shoal.errors import NoCoverage, OutdatedPeer
from shoal.executor.codecs import decode, encode
from shoal.node.hop import Hop
from shoal.types import Numerics, PeerId, Span
from shoal.wire.cache_names import CACHE_STRIDE, Beginning
from shoal.wire.messages import Reroute, Rerouted
from tests.one_process import FORMAT

from .conftest import THIRDS, memory_swarm

ROWS = 3
NUMERICS = Numerics(FORMAT, "auto", "rows")


async def through(ring: Ring, hidden: np.ndarray) -> np.ndarray:
    """What the ring's blocks make of hidden states ``[rows, width]``."""
    await ring.send(encode(hidden, "float32"), "float32", len(hidden), len(hidden))
    returned = await ring.receive()
    return decode(returned.payload, returned.codec, returned.rows, hidden.shape[1])


async def test_rings_over_the_parts_of_a_model_together_give_what_the_whole_gives(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, THIRDS) as swarm:
        rings, shape = swarm.client.rings, swarm.model.shape
        hidden = np.random.default_rng(0).standard_normal((ROWS, shape.hidden_size), np.float32)
        whole = await rings.open(shape, NUMERICS, 16)
        parts = [await rings.open(shape, NUMERICS, 16, span=Span(*ends)) for ends in ((0, 1), (1, 5), (5, 6))]
        assert whole.span == Span(0, 6)
        assert [hop.span for hop in parts[1].route] == [Span(1, 2), Span(2, 3), Span(3, 5)]
        expected, found = await through(whole, hidden), hidden
        for part in parts:
            found = await through(part, found)
        assert np.array_equal(found, expected)
        for ring in (whole, *parts):
            await rings.close(ring)


async def test_a_lost_hop_of_such_a_ring_is_replaced_for_its_own_blocks(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 3), Span(0, 3), Span(3, 6)]) as swarm:
        rings, shape = swarm.client.rings, swarm.model.shape
        hidden = np.random.default_rng(0).standard_normal((ROWS, shape.hidden_size), np.float32)
        ring = await rings.open(shape, NUMERICS, 16, span=Span(1, 5))
        expected = await through(ring, hidden)
        dead = ring.route[0].address.peer
        swarm.world.kill(dead)
        with trio.fail_after(10):
            while not ring.lost:  # noqa: ASYNC110
                await trio.sleep(0.01)
        rings.finder.suspect(dead)
        replacements = rings.finder.replacements(ring, shape)
        assert await ring.repair(replacements, 0, 5.0) == 1
        assert [hop.span for hop in ring.route] == [Span(1, 3), Span(3, 5)]
        assert ring.route[0].address.peer != dead
        assert np.array_equal(await through(ring, hidden), expected)
        assert rings.finder.possible(ring, shape, avoid={dead})
        assert not rings.finder.possible(ring, shape, avoid={ring.route[1].address.peer})
        await rings.close(ring)


async def test_only_the_blocks_that_the_hops_are_to_run_need_somebody(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(1, 5)]) as swarm:
        rings, shape = swarm.client.rings, swarm.model.shape
        await rings.close(await rings.open(shape, NUMERICS, 16, span=Span(1, 5)))
        with pytest.raises(NoCoverage) as caught:
            await rings.open(shape, NUMERICS, 16)
        assert caught.value.missing == (Span(0, 1), Span(5, 6))


async def test_who_is_slow_to_reach_has_more_time_with_each_that_had_too_little(
    tmp_path, checkpoint, monkeypatch
):
    """Eight nodes so far away that each takes longer than a newcomer has: not all eight are given up."""
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)] * 8) as swarm:
        asked: list[PeerId] = []
        open_pipe = swarm.client.network.open_pipe

        async def slowly(address, *, deadline_s):
            asked.append(address.peer)
            await trio.sleep(1.5 * NEWCOMER_OPENS_S)
            return await open_pipe(address, deadline_s=deadline_s)

        monkeypatch.setattr(swarm.client.network, "open_pipe", slowly)
        async with swarm.client.session(str(checkpoint), tokens=64):
            assert len(asked) in (3, 4)


@pytest.mark.parametrize("other", [Span(0, 6), Span(3, 6)])
async def test_a_hop_that_was_lost_takes_its_own_place_again_only_where_there_is_no_route_without_it(
    tmp_path, checkpoint, other
):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 3), other]) as swarm:
        finder, shape = swarm.client.rings.finder, swarm.model.shape
        addresses = {a.served.span: a.address for a in swarm.client.announcements() if a.served}
        lost, kept = addresses[Span(0, 3)], addresses[other]
        # A session is at a peer once: the peer that is kept cannot take the lost blocks too.
        ring = SimpleNamespace(
            route=[RouteHop(lost, Span(0, 3), 0.0, True), RouteHop(kept, Span(3, 6), 0.0, True)],
            lost=[0],
            numerics=NUMERICS,
            rules=SimpleNamespace(tokens=16),
            span=Span(0, 6),
        )
        if other == Span(0, 6):
            with pytest.raises(NoCoverage):
                finder.replacements(ring, shape)
        else:
            (replacement,) = finder.replacements(ring, shape)
            assert [hop.address.peer for hop in replacement.hops] == [lost.peer]


async def test_one_that_was_silent_a_moment_ago_goes_before_one_that_is_distrusted(
    tmp_path, checkpoint, monkeypatch
):
    monkeypatch.setattr(suspects, "FIRST_S", 0.05)
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)] * 2) as swarm:
        finder, shape = swarm.client.rings.finder, swarm.model.shape
        silent, liar = (PeerId(a.peer) for a in swarm.client.announcements() if a.served)
        finder.reputation.failed(liar, trio.current_time())
        finder.suspect(silent)
        await trio.sleep(0.1)
        (hop,) = finder.find(shape, NUMERICS, 16, set(), span=Span(0, 6))
        assert hop.address.peer == silent
        (hop,) = finder.find(shape, NUMERICS, 16, {silent}, span=Span(0, 6))
        assert hop.address.peer == liar


async def test_what_hops_did_is_settled_once_however_often_a_ring_is_closed(
    tmp_path, checkpoint, monkeypatch
):
    async with memory_swarm(tmp_path / "home", checkpoint, THIRDS) as swarm:
        rings, settled = swarm.client.rings, []

        async def settle(given, bills):
            settled.append(given)

        monkeypatch.setattr(rings._accounts, "settle", settle)
        ring = await rings.open(swarm.model.shape, NUMERICS, 16)
        for _ in range(3):  # a session whose recovery failed closes it again
            await rings.close(ring)
        assert len(settled) == 1


@pytest.mark.parametrize("share", [0, 1])
async def test_who_begins_as_others_did_tries_newcomers_too(tmp_path, checkpoint, monkeypatch, share):
    monkeypatch.setattr(route_finder, "TRIALS", share)
    begins = Beginning.of(b"ours", range(CACHE_STRIDE))
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)]) as swarm:
        rings, asked = swarm.client.rings, []
        find = rings.finder.find

        def noted(*args, **options):
            asked.append((options["trial"], options["affinity"]))
            return find(*args, **options)

        monkeypatch.setattr(rings.finder, "find", noted)
        await rings.close(await rings.open(swarm.model.shape, NUMERICS, 16, begins=begins))
        assert asked == [(True, b"") if share else (False, begins.affinity)]


async def test_a_first_hop_whose_release_does_not_know_a_step_is_lost_as_one_that_is_gone(
    tmp_path, checkpoint
):
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)]) as swarm:
        rings, shape = swarm.client.rings, swarm.model.shape
        ring = await rings.open(shape, NUMERICS, 16)
        ring.first.version = 8  # rows that see each other came with 9
        hidden = np.zeros((ROWS, shape.hidden_size), np.float32)
        with pytest.raises(HopLost, match="does not know"):
            await ring.send(encode(hidden, "float32"), "float32", ROWS, ROWS, mutual=((0, ROWS),))
        assert ring.lost == [0]
        await rings.close(ring)


async def test_what_a_new_next_hop_does_not_know_is_not_kept_for_it(tmp_path, checkpoint, monkeypatch):
    def outdated(hop, message, onward):
        raise OutdatedPeer("it does not know what it would be sent again")

    monkeypatch.setattr(Hop, "reroute", outdated)
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 3), Span(3, 6)]) as swarm:
        rings, shape = swarm.client.rings, swarm.model.shape
        ring = await rings.open(shape, NUMERICS, 16)
        reply = await ring.places.hops[0].ask(Reroute(ring.session, 0, None, None), 5.0)
        assert reply == Rerouted(ring.session, kept=False)
        assert all(node.server.sessions == 1 for node in swarm.nodes)
        await rings.close(ring)
