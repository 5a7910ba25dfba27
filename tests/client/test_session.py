"""A session over a route gives what the whole model gives, bit for bit, and leaves nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from shoal.client.sampling import Sampler, Sampling
from shoal.errors import Busy, LocalProtocolError, NoCoverage, PromptTooLong, UsageError
from shoal.models.store.store import ModelStore
from shoal.net.channel import Channel
from shoal.node.speed import Speed
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span
from tests.one_process import FORMAT

from .conftest import PROMPT, THIRDS, Whole, memory_swarm


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


async def idle(swarm):
    """Wait until every node has given its KV back."""
    with trio.fail_after(25):
        for node in swarm.nodes:
            await node.server.wait_idle()
    return [node.engine.tokens - node.engine.tokens_free for node in swarm.nodes]


def of_family(family, folder, checkpoint, whole):
    """A checkpoint, the whole model, and its format: of another family than Llama, as its modules run it."""
    if family == "llama":
        return checkpoint, whole, FORMAT
    written = write_checkpoint(folder / family, family)
    return written, Whole(written), "fp32"


@pytest.mark.parametrize("format", ["fp32", FORMAT])
async def test_prefill_and_decode_equal_the_whole_model(home, checkpoint, whole, format):
    whole = Whole(checkpoint) if format == "fp32" else whole
    async with (
        memory_swarm(home, checkpoint, THIRDS, format=format) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        expected = whole.step(PROMPT)
        assert np.array_equal(await session.step(PROMPT), expected)
        for _ in range(20):
            token = int(expected[-1].argmax())
            expected = whole.step([token])
            assert np.array_equal(await session.step([token]), expected)


async def test_a_chunked_prefill_equals_the_whole_model_in_the_same_chunks(home, checkpoint, whole):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        expected = np.concatenate([whole.step(PROMPT[i : i + 7]) for i in range(0, len(PROMPT), 7)])
        assert np.array_equal(await session.step(PROMPT, chunk=7), expected)


async def test_chunk_0_lets_the_pieces_be_chosen_whatever_is_set(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        client = await swarm.add_client(prefill_chunk=7)
        async with client.session(str(checkpoint), tokens=64) as session:
            counts = []
            for chunk in (None, 0, 5):
                before = swarm.nodes[0].server.load.steps
                await session.step(PROMPT, chunk=chunk)
                counts.append(swarm.nodes[0].server.load.steps - before)
                session.roll_back(0)
            assert counts == [4, 1, 5]
            with pytest.raises(UsageError, match="-1"):
                await session.step(PROMPT, chunk=-1)


@pytest.mark.parametrize("tokens", [0, -1])
async def test_a_session_of_no_tokens_is_refused(home, checkpoint, tokens):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        with pytest.raises(UsageError, match=str(tokens)):
            async with swarm.client.session(str(checkpoint), tokens=tokens):
                pass


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
async def test_a_roll_back_forgets_and_goes_on(home, tmp_path, checkpoint, whole, family):
    """Where a cache cannot go back (a sliding window, a state), the client replays; the bits are the same."""
    checkpoint, whole, format = of_family(family, tmp_path, checkpoint, whole)
    async with (
        memory_swarm(home, checkpoint, THIRDS, format=format) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        whole.step(PROMPT)
        await session.step(PROMPT)
        await session.step([7, 8, 9])
        session.roll_back(len(PROMPT))
        for token in (10, 11):
            assert np.array_equal(await session.step([token]), whole.step([token]))
        assert session.token_ids == [*PROMPT, 10, 11]


async def test_greedy_tokens_are_those_of_the_whole_model(home, checkpoint, whole):
    sampler = Sampler(Sampling())
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        chosen = [(await session.advance(PROMPT, sampler)).token]
        while len(chosen) < 20:
            chosen.append((await session.advance(chosen[-1:], sampler)).token)
    assert chosen == whole.greedy(PROMPT, 20)


async def test_every_hop_tells_where_a_step_spent_its_time(home, checkpoint):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        advanced = await session.advance(PROMPT, Sampler(Sampling()))
    assert [time.hop for time in advanced.times] == [0, 1, 2]
    assert all(time.compute_us > 0 for time in advanced.times)


async def test_ten_sessions_at_once_each_get_their_own_tokens(home, checkpoint, whole):
    answers: dict[int, list[int]] = {}

    async def one(swarm, number):
        answer = swarm.client.generate(str(checkpoint), [number + 1, 2 * number + 3, 5], max_tokens=12)
        async for _ in answer:
            pass
        answers[number] = answer.token_ids

    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(one, swarm, number)
        for number, tokens in answers.items():
            expected = whole.greedy([number + 1, 2 * number + 3, 5], 12)
            assert tokens == expected[: len(tokens)]
            assert len(tokens) == 12 or tokens[-1] in swarm.model.end_tokens
        assert await idle(swarm) == [0, 0, 0]


async def test_closing_a_session_frees_its_kv_on_every_hop(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        async with swarm.client.session(str(checkpoint), tokens=100) as session:
            await session.step(PROMPT)
            held = [n.engine.tokens - n.engine.tokens_free for n in swarm.nodes]
            assert held == [32, 32, 32]  # what the prompt takes, in whole pages of 16
        assert await idle(swarm) == [0, 0, 0]


async def test_a_hop_that_takes_nothing_keeps_nobody_from_hearing_of_the_end(home, checkpoint, monkeypatch):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        async with swarm.client.session(str(checkpoint), tokens=100) as session:
            await session.step(PROMPT)
            first, send, reads = session.ring.places.hops[0].channel, Channel.send, trio.Event()

            async def stuck(channel, message, payload=b""):
                if channel is first:
                    await reads.wait()
                await send(channel, message, payload)

            monkeypatch.setattr(Channel, "send", stuck)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.aclose)
                with trio.fail_after(15):
                    while any(node.server.sessions for node in swarm.nodes[1:]):  # noqa: ASYNC110
                        await trio.sleep(0.01)
                assert swarm.nodes[0].server.sessions == 1
                reads.set()
        assert await idle(swarm) == [0, 0, 0]


async def test_losing_the_client_frees_its_kv_on_every_hop(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        lost = await swarm.add_client(resume_s=0.5)
        with pytest.raises(NoCoverage):
            async with lost.session(str(checkpoint), tokens=100) as session:
                await session.step(PROMPT)
                swarm.world.kill(lost.network.peer)
                await session.step([1])
        assert await idle(swarm) == [0, 0, 0]


async def test_an_answer_that_is_abandoned_frees_its_kv(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=50)
        async for _ in answer:
            break
        await answer.aclose()
        assert await idle(swarm) == [0, 0, 0]


async def test_overlapping_spans_are_cut_to_a_route(home, checkpoint, whole):
    async with (
        memory_swarm(home, checkpoint, [Span(0, 4), Span(2, 6)]) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        spans = [hop.span for hop in session.ring.route]
        assert spans[0].end == spans[1].start
        assert np.array_equal(await session.step(PROMPT), whole.step(PROMPT))
        assert np.array_equal(await session.step([9]), whole.step([9]))


async def test_a_route_goes_through_pinned_peers(home, checkpoint):
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS]) as swarm:
        pinned = [network.peer for network in swarm.networks[3:5]]
        client = await swarm.add_client(pin=tuple(pinned))
        for _ in range(4):
            async with client.session(str(checkpoint), tokens=64) as session:
                assert [hop.address.peer for hop in session.ring.route][:2] == pinned


async def test_a_session_never_leaves_the_peers_that_it_may_use_alone(home, checkpoint, whole):
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS, Span(0, 6)]) as swarm:
        ours = [network.peer for network in swarm.networks[:4]]
        client = await swarm.add_client(only=tuple(ours), resume_s=1.0)
        async with client.session(str(checkpoint), tokens=64) as session:
            assert np.array_equal(await session.step(PROMPT), whole.step(PROMPT))
            assert {hop.address.peer for hop in session.ring.route} <= set(ours)
            swarm.world.kill(session.ring.route[0].address.peer)  # of its blocks the set has one more
            assert np.array_equal(await session.step([9]), whole.step([9]))
            assert {hop.address.peer for hop in session.ring.route} <= set(ours)
            swarm.world.kill(session.ring.route[1].address.peer)  # of these it has none, and others have two
            with pytest.raises(NoCoverage, match=r"blocks 2:3 .*of the 4 peers that only names"):
                await session.step([8])


@pytest.mark.parametrize(
    ("only", "said"), [([0, 2], "blocks 2:3 .*of the 2 peers that only names"), ([], "0:6 .*of the one peer")]
)
async def test_blocks_that_none_of_the_peers_serves_that_may_be_used_are_named(
    home, checkpoint, autojump_clock, only, said
):
    async with memory_swarm(home, checkpoint, [*THIRDS, Span(0, 6)]) as swarm:
        names = [swarm.networks[index].peer for index in only] or ["nobody's id"]
        client = await swarm.add_client(only=tuple(names))
        with pytest.raises(NoCoverage, match=said):
            async with client.session(str(checkpoint)):
                pass
        assert bool(client._ends) == bool(only), "where nobody serves any block, no ends are loaded"


async def test_for_the_least_cost_a_route_has_the_fewest_hops(home, checkpoint):
    async with memory_swarm(home, checkpoint, [*THIRDS, Span(0, 3), Span(3, 6)], objective="cost") as swarm:
        for _ in range(4):
            async with swarm.client.session(str(checkpoint), tokens=64) as session:
                assert [hop.span for hop in session.ring.route] == [Span(0, 3), Span(3, 6)]


async def test_clients_do_not_all_take_the_same_route(home, checkpoint, monkeypatch):
    """Of peers that are as fast as each other."""
    monkeypatch.setattr("shoal.testing.swarm.measured_once", lambda runner, pool: Speed(0.001, 6000.0))
    async with memory_swarm(home, checkpoint, [Span(0, 6)] * 3) as swarm:
        taken = set()
        for _ in range(20):
            async with swarm.client.session(str(checkpoint), tokens=16) as session:
                taken.add(session.ring.route[0].address.peer)
    assert len(taken) > 1


async def test_missing_blocks_are_named(home, checkpoint, autojump_clock):
    async with memory_swarm(home, checkpoint, [Span(0, 2), Span(4, 6)]) as swarm:
        with pytest.raises(NoCoverage, match="2:4"):
            async with swarm.client.session(str(checkpoint)):
                pass


async def test_a_full_node_says_how_much_it_has(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS, kv_tokens=128) as swarm:
        async with swarm.client.session(str(checkpoint), tokens=100) as first:
            other = await swarm.add_client()
            await first.step([7] * 100)
            with pytest.raises(Busy) as caught:
                async with other.session(str(checkpoint), tokens=100):
                    pass
            assert caught.value.tokens_free == 32  # half of an equal share: so much it would give up
        async with other.session(str(checkpoint), tokens=100) as session:
            await session.step(PROMPT)


async def test_another_version_of_the_model_is_never_mixed_in(home, tmp_path, checkpoint):
    changed = write_checkpoint(tmp_path / checkpoint.name, "llama", seed=1)
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        store = ModelStore(swarm.settings.paths.models)
        other = await trio.to_thread.run_sync(store.resolve, str(changed))
        assert other.digest != swarm.model.digest
        await swarm.add_node(Span(0, 6), other)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            used = {hop.address.peer for hop in session.ring.route}
        assert swarm.networks[3].peer not in used


@pytest.mark.parametrize("tokens", [[], [-1], [300], [2**40]])
async def test_tokens_that_cannot_be_are_refused_before_anything_is_sent(home, checkpoint, tokens):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        with pytest.raises(UsageError):
            await session.step(tokens)
        assert session.token_ids == []


async def test_more_tokens_than_the_context_are_refused_never_cut(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS) as swarm:
        with pytest.raises(PromptTooLong):
            async with swarm.client.session(str(checkpoint), tokens=257):
                pass
        answer = swarm.client.generate(str(checkpoint), [5] * 256)
        with pytest.raises(PromptTooLong, match="256 tokens"):
            async for _ in answer:
                pass
        assert await idle(swarm) == [0, 0, 0]


async def test_a_session_takes_no_more_than_it_reserved(home, checkpoint, whole):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=30) as session,
    ):
        with pytest.raises(PromptTooLong):
            await session.step([5] * 31)
        assert np.array_equal(await session.step(PROMPT), whole.step(PROMPT))


@pytest.mark.parametrize("family", ["llama", "gemma3", "mamba"])
async def test_a_token_sent_ahead_changes_nothing_whatever_comes_instead(
    home, tmp_path, checkpoint, whole, family
):
    """``more`` sends the chosen token before the caller asks for it: that one, another, or a roll-back."""
    checkpoint, whole, format = of_family(family, tmp_path, checkpoint, whole)
    sampler = Sampler(Sampling())
    async with (
        memory_swarm(home, checkpoint, THIRDS, format=format) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        chosen = (await session.advance(PROMPT, sampler, more=True)).token
        expected = whole.step(PROMPT)
        assert chosen == int(expected[-1].argmax())
        assert session.token_ids == PROMPT
        assert np.array_equal(await session.step([chosen]), whole.step([chosen]))

        other = int(whole.step([7])[-1].argmax())
        assert (await session.advance([7], sampler, more=True)).token == other
        after = await session.step([8, 9])
        if family == "mamba":
            # transformers' own takes several tokens for the beginning of a sequence: it is asked one by one,
            # and so is its head, whose sums for one row differ in their last bit from those for two.
            one_by_one = np.concatenate([whole.step([8]), whole.step([9])])
            assert np.allclose(after, one_by_one, atol=1e-5)
        else:
            assert np.array_equal(after, whole.step([8, 9]))

        await session.advance([10], sampler, more=True)
        session.roll_back(len(session.token_ids) - 1)
        assert np.array_equal(await session.step([10]), whole.step([10]))


async def test_nobody_rolls_back_to_what_was_only_sent_ahead(home, checkpoint, whole):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.advance(PROMPT, Sampler(Sampling()), more=True)
        with pytest.raises(LocalProtocolError):
            session.roll_back(len(PROMPT) + 1)
        whole.step(PROMPT)
        assert np.array_equal(await session.step([7]), whole.step([7]))


async def test_a_token_is_sent_ahead_before_anybody_asks(home, checkpoint):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        steps = [node.server.load.steps for node in swarm.nodes]
        await session.advance(PROMPT, Sampler(Sampling()), more=True)
        with trio.fail_after(25):
            while [node.server.load.steps for node in swarm.nodes] != [count + 2 for count in steps]:  # noqa: ASYNC110
                await trio.sleep(0.001)


async def test_no_token_is_sent_ahead_into_a_full_session(home, checkpoint):
    async with (
        memory_swarm(home, checkpoint, THIRDS) as swarm,
        swarm.client.session(str(checkpoint), tokens=len(PROMPT)) as session,
    ):
        await session.advance(PROMPT, Sampler(Sampling()), more=True)
        assert session.ring.rules.in_flight == 0
