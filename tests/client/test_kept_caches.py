"""What a session has left at its hops by name, and who may begin with it."""

from __future__ import annotations

from contextlib import AsyncExitStack

import numpy as np
import pytest
import trio

from shoal.client.ring.hop import HopRefused
from shoal.errors import Busy, RemoteProtocolError
from shoal.net.channel import Channel
from shoal.node import kept_caches, server
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import PeerId, Span
from shoal.wire.cache_names import CACHE_STRIDE, MAX_CACHE_NAMES, Beginning, cache_keys, names_for
from shoal.wire.messages import NEWEST_VERSION

from .conftest import PROMPT, THIRDS, memory_swarm

TOKENS = [3 + number * 7 % 90 for number in range(3 * CACHE_STRIDE + 5)]
KEYS = cache_keys(b"ours", TOKENS)
AGAIN = Beginning(TOKENS, KEYS)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("roomy"), "llama", max_position_embeddings=512)


async def leave(client, model, keys=KEYS):
    """A session that has gone, and what it gave for its last token."""
    async with client.session(model, tokens=256) as session:
        given = await session.step(TOKENS)
        await session.keep(keys)
    return given


async def kept(swarm, count):
    """Wait until every hop has kept so much."""
    with trio.fail_after(25):
        while any(node.server.kept_caches != count for node in swarm.nodes):  # noqa: ASYNC110
            await trio.sleep(0.01)


def test_names_are_of_the_secret_the_tokens_and_the_hop():
    assert [key.tokens for key in KEYS] == [64, 128, 192]
    other = [*TOKENS[:100], 1, *TOKENS[101:]]
    alike = [a == b for a, b in zip(KEYS, cache_keys(b"ours", other), strict=True)]
    assert alike == [True, False, False]
    assert not {k.key for k in KEYS} & {k.key for k in cache_keys(b"yours", TOKENS)}
    assert not {n.name for n in names_for(KEYS, "a")} & {n.name for n in names_for(KEYS, "b")}
    longest = cache_keys(b"ours", range(20_000))
    assert (len(longest), longest[-1].tokens) == (MAX_CACHE_NAMES, 19_968)


async def test_another_client_goes_on_with_the_same_bits(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        given = await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        # Its room is free for others.
        assert all(node.server.tokens_free == node.engine.tokens for node in swarm.nodes)
        assert all(node.engine.sessions == 0 for node in swarm.nodes)
        other = await swarm.add_client()
        async with other.session(str(roomy), tokens=256, begins=AGAIN) as session:
            assert session.token_ids == TOKENS[:192]
            assert session.reusable(TOKENS) == 192
            assert np.array_equal(await session.step(TOKENS[192:]), given[192:])
        await kept(swarm, 0)  # taken, and not named again


async def test_kv_of_a_codec_that_a_client_does_not_know_is_not_offered_to_it(home, roomy, monkeypatch):
    async with memory_swarm(home, roomy, THIRDS, format="bf16", wire="int6") as swarm:
        await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        client = await swarm.add_client(wire="auto")
        old = client.network.peer
        version = property(lambda c: 8 if c.peer == old else NEWEST_VERSION, lambda c, spoken: None)
        monkeypatch.setattr(Channel, "version", version, raising=False)
        async with client.session(str(roomy), tokens=256, begins=AGAIN) as session:
            assert (session.token_ids, session.ring.codec) == ([], "float32")
            await session.step(TOKENS)


async def test_a_session_that_waits_gives_its_kv_to_a_later_one_and_ends(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        other = await swarm.add_client()
        async with swarm.client.session(str(roomy), tokens=256) as session:
            given = await session.step(TOKENS)
            await session.keep(KEYS)
            await trio.testing.wait_all_tasks_blocked(0.02)
            async with other.session(str(roomy), tokens=256, begins=AGAIN) as later:
                assert later.token_ids == TOKENS[:192]
                with trio.fail_after(25):
                    while len(session.ring.lost) < 3:  # noqa: ASYNC110
                        await trio.sleep(0.01)
            # Whoever goes on with it all the same has it computed again.
            assert np.array_equal(await session.step(PROMPT), (await fresh(swarm, roomy, PROMPT)))
        assert given.shape[0] == len(TOKENS)


async def test_of_several_that_wait_one_ends_and_none_where_as_much_is_kept(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm, AsyncExitStack() as stack:
        waiting = []
        for tokens, keys in ((128, KEYS[:2]), (197, KEYS)):
            session = await stack.enter_async_context(swarm.client.session(str(roomy), tokens=256))
            await session.step(TOKENS[:tokens])
            await session.keep(keys)
            waiting.append(session)
        await trio.testing.wait_all_tasks_blocked(0.02)
        async with swarm.client.session(str(roomy), tokens=256, begins=AGAIN) as later:
            assert later.token_ids == TOKENS[:192]
            await kept(swarm, 0)
            assert all(node.server.sessions == 2 for node in swarm.nodes)
            await later.step(TOKENS[192:])
            await later.keep(KEYS)
        await kept(swarm, 1)
        # Of what is kept as much as the one that waits has, so that it goes on waiting.
        short = Beginning(TOKENS[:128], KEYS[:2])
        async with swarm.client.session(str(roomy), tokens=256, begins=short) as later:
            assert later.token_ids == TOKENS[:128]
            await kept(swarm, 0)
            assert all(node.server.sessions == 2 for node in swarm.nodes)
        assert [len(session.ring.lost) for session in waiting] == [0, 3]


async def fresh(swarm, model, then):
    async with swarm.client.session(str(model), tokens=256) as session:
        await session.step(TOKENS)
        return await session.step(then)


async def test_nobody_takes_what_is_in_use_was_taken_back_or_is_another_models(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        other = await swarm.add_client()
        async with swarm.client.session(str(roomy), tokens=256) as session:
            await session.step(TOKENS)
            await session.keep(KEYS)
            await session.keep(())
            await trio.testing.wait_all_tasks_blocked(0.02)
            async with other.session(str(roomy), tokens=256, begins=AGAIN) as later:
                assert later.token_ids == []
            await session.keep(KEYS)
            session.roll_back(100)
            await session.step([5])  # 101 tokens
            await trio.testing.wait_all_tasks_blocked(0.02)
            async with other.session(str(roomy), tokens=256, begins=AGAIN) as later:
                assert len(later.token_ids) == 64  # the names of what was forgotten are gone
        unlike = Beginning(TOKENS, cache_keys(b"yours", TOKENS))
        await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        async with other.session(str(roomy), tokens=256, begins=unlike) as later:
            assert later.token_ids == []


async def test_a_long_conversation_is_not_taken_for_a_short_common_beginning(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        short = Beginning(TOKENS[:64], KEYS[:1])
        async with swarm.client.session(str(roomy), tokens=256) as session:
            await session.step(TOKENS)
            await session.keep(KEYS)
            await trio.testing.wait_all_tasks_blocked(0.02)
            async with swarm.client.session(str(roomy), tokens=256, begins=short) as other:
                assert other.token_ids == []
        await kept(swarm, 1)
        async with swarm.client.session(str(roomy), tokens=256, begins=short) as other:
            assert other.token_ids == []
        await kept(swarm, 1)


async def test_where_one_hop_has_kept_nothing_all_is_computed(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        given = await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        server = swarm.nodes[1].server
        server._sessions.kept.clear(server.engine)
        async with swarm.client.session(str(roomy), tokens=256, begins=AGAIN) as session:
            assert session.token_ids == []
            assert np.array_equal(await session.step(TOKENS), given)


async def test_what_came_by_one_way_is_not_taken_for_what_comes_by_another(home, roomy):
    """An honest hop behind a liar: what it has kept is of no use behind an honest one."""
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        given = await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        await swarm.add_node(THIRDS[0])
        with trio.fail_after(5):
            while len(swarm.client.announcements()) < 4:
                await swarm.client.member.wait_changed()
        first = swarm.networks[0].peer
        rings, shape = swarm.client.rings, swarm.model.shape
        numerics = swarm.nodes[0].engine.numerics
        route = rings.finder.find(shape, numerics, 256, {PeerId(first)}, span=Span(0, shape.n_blocks))
        assert first not in {hop.address.peer for hop in route}
        ring = await rings.open_over(route, shape, numerics, 256, 5.0, None, caches=KEYS)
        assert [hop.held for hop in ring.places.hops] == [0, 0, 0]
        await rings.close(ring)
        assert [node.server.kept_caches for node in swarm.nodes] == [1, 1, 1, 0]
        async with swarm.client.session(str(roomy), tokens=256) as session:
            assert np.array_equal(await session.step(TOKENS), given)


async def test_after_a_hop_was_replaced_none_keeps_what_came_by_two_ways(home, roomy):
    async with memory_swarm(home, roomy, [*THIRDS, THIRDS[1]]) as swarm:
        async with swarm.client.session(str(roomy), tokens=256) as session:
            await session.step(TOKENS[:10])
            used = [network.peer for network in swarm.networks].index(session.ring.route[1].address.peer)
            swarm.kill(used)
            await session.step(TOKENS[10:])
            assert [reroute.way for reroute in session.reroutes] == ["resend"]
            await session.keep(KEYS)
        with trio.fail_after(25):
            while any(n.engine.sessions for i, n in enumerate(swarm.nodes) if i != used):  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert sum(node.server.kept_caches for node in swarm.nodes) == 0


def test_what_begins_alike_looks_for_the_same_hops():
    first = Beginning.of(b"ours", TOKENS)
    assert first.keys == KEYS
    assert first.affinity == Beginning.of(b"ours", [*TOKENS[:CACHE_STRIDE], 1, 2]).affinity != b""
    assert first.affinity != Beginning.of(b"yours", TOKENS).affinity
    assert Beginning.of(b"ours", TOKENS[: CACHE_STRIDE - 1]).affinity == b""


async def test_a_hop_that_is_lost_later_is_replaced_as_ever(home, roomy):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        given = await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        async with swarm.client.session(str(roomy), tokens=256, begins=AGAIN) as session:
            assert session.token_ids == TOKENS[:192]
            await swarm.add_node(THIRDS[1])
            with trio.fail_after(5):
                while len(swarm.client.announcements()) < 4:
                    await swarm.client.member.wait_changed()
            first = await session.step(TOKENS[192:193])  # the hop before has sent something, and not all
            swarm.kill(1)
            # Nobody knows any more in which pieces the beginning was sent.
            then = await session.step(TOKENS[193:])
            assert np.allclose(np.concatenate([first, then]), given[192:], atol=1e-4)
            assert session.token_ids == TOKENS
            assert [reroute.way for reroute in session.reroutes] == ["replay"]


async def test_what_is_kept_goes_first_where_room_is_wanted_and_with_time(home, roomy, monkeypatch):
    monkeypatch.setattr(server, "EXPIRE_EVERY_S", 0.05)
    async with memory_swarm(home, roomy, THIRDS, kv_tokens=256) as swarm:
        await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        async with swarm.client.session(str(roomy), tokens=256) as session:
            await session.step(TOKENS)
            await kept(swarm, 0)
        await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        monkeypatch.setattr(kept_caches, "CACHE_S", 0.0)
        await kept(swarm, 0)
        assert all(node.engine.tokens_free == node.engine.tokens for node in swarm.nodes)


async def test_what_is_kept_is_bounded_and_of_many_that_goes_of_who_has_most(home, roomy, monkeypatch):
    monkeypatch.setattr(kept_caches, "MAX_CACHES", 2)
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        other = await swarm.add_client()
        await leave(other, str(roomy), cache_keys(b"theirs", TOKENS))
        for secret in (b"1", b"2"):
            await leave(swarm.client, str(roomy), cache_keys(secret, TOKENS))
        await kept(swarm, 2)
        theirs = Beginning(TOKENS, cache_keys(b"theirs", TOKENS))
        async with other.session(str(roomy), tokens=256, begins=theirs) as session:
            assert len(session.token_ids) == 192


async def test_a_hop_that_says_it_kept_what_nobody_asked_for_does_not_take_part(home, roomy, monkeypatch):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        monkeypatch.setattr(kept_caches, "shared_tokens", lambda *_: 130)
        with pytest.raises(RemoteProtocolError, match="130 tokens"):
            async with swarm.client.session(str(roomy), tokens=256, begins=AGAIN):
                pass


async def test_a_hop_that_cannot_open_with_what_it_has_kept_gives_its_room_back(home, roomy, monkeypatch):
    async with memory_swarm(home, roomy, THIRDS) as swarm:
        await leave(swarm.client, str(roomy))
        await kept(swarm, 1)
        engine = swarm.nodes[1].engine

        def full(session, state):
            raise Busy("no more sessions")

        monkeypatch.setattr(engine, "take_up", full)
        route = swarm.client.rings.finder.find(
            swarm.model.shape, engine.numerics, 256, set(), span=Span(0, 6)
        )
        with pytest.raises(HopRefused, match="no more sessions"):
            await swarm.client.rings.open_over(
                route, swarm.model.shape, engine.numerics, 256, 5.0, None, caches=KEYS
            )
        with trio.fail_after(25):
            while engine.tokens_free != engine.tokens:  # noqa: ASYNC110
                await trio.sleep(0.01)
