"""A client that runs the first and the last blocks itself gets the same tokens, and no peer runs those."""

from __future__ import annotations

import itertools
from contextlib import asynccontextmanager

import numpy as np
import pytest
import trio

from shoal.client.ends import SentRows
from shoal.client.sampling import Sampler, Sampling
from shoal.client.speculation import gain, sources, speculation
from shoal.client.speculation.controller import WindowPlan
from shoal.client.speculation.drafters import NgramDrafter
from shoal.errors import Busy, NoCoverage, OutOfResources, StepFailed, UsageError
from shoal.executor.engine import Engine
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

from .conftest import PROMPT, Whole, memory_swarm

GREEDY = Sampler(Sampling())
ENDS = ["2:2", "1:0", "0:1", "4:1"]
WHOLE = Span(0, 6)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@asynccontextmanager
async def private(home, checkpoint, ends, spans, **options):
    """A swarm, and a client of it that has private ends."""
    async with memory_swarm(home, checkpoint, spans, **options) as swarm:
        yield swarm, await swarm.add_client(private_ends=ends, **options)


def forwards(monkeypatch, client):
    """How many rows each of the client's own engines is asked for, by its first block."""
    asked: dict[int, list[int]] = {}
    submit = Engine.submit

    def counted(engine, session, position, payload, codec, rows, *others):
        if engine in engines():
            asked.setdefault(engine.runner.span.start, []).append(rows)
        submit(engine, session, position, payload, codec, rows, *others)

    def engines():
        return [e for ends in client._ends.values() for e in (ends.first, ends.last)]

    monkeypatch.setattr(Engine, "submit", counted)
    return asked


async def decode(session, prompt, count, before_token=lambda token: None):
    chosen = [(await session.advance(prompt, GREEDY, more=True)).token]
    while len(chosen) < count:
        before_token(len(chosen))
        chosen.append((await session.advance(chosen[-1:], GREEDY, more=True)).token)
    return chosen


async def answered(client, checkpoint, prompt, **options):
    answer = client.generate(str(checkpoint), prompt, **options)
    async for _ in answer:
        pass
    return answer


@pytest.mark.parametrize("ends", ENDS)
async def test_logits_are_those_of_the_whole_model_to_the_last_bit(home, checkpoint, whole, ends):
    async with (
        private(home, checkpoint, ends, [Span(0, 3), Span(3, 6)]) as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        expected = whole.step(PROMPT)
        assert np.array_equal(await session.step(PROMPT), expected)
        for _ in range(8):
            token = int(expected[-1].argmax())
            expected = whole.step([token])
            assert np.array_equal(await session.step([token]), expected)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "w8a8", "int4"])
async def test_tokens_are_those_without_private_ends_in_every_format(home, checkpoint, format):
    async with private(home, checkpoint, "2:1", [WHOLE], format=format) as (swarm, client):
        ordinary = await answered(swarm.client, checkpoint, PROMPT, max_tokens=16)
        kept = await answered(client, checkpoint, PROMPT, max_tokens=16)
    assert kept.token_ids == ordinary.token_ids
    assert [stage.span for stage in kept.route] == [Span(2, 5)]
    assert [stage.span for stage in ordinary.route] == [WHOLE]


async def test_nobody_needs_to_serve_the_blocks_that_the_client_keeps(home, checkpoint, whole):
    async with private(home, checkpoint, "2:2", [Span(2, 4)]) as (_, client):
        assert (await answered(client, checkpoint, PROMPT, max_tokens=8)).token_ids == whole.greedy(PROMPT, 8)


async def test_a_peer_that_serves_all_blocks_is_asked_for_those_between_alone(home, checkpoint):
    async with private(home, checkpoint, "2:2", [WHOLE, WHOLE]) as (swarm, client):
        opened = []
        for node in swarm.nodes:
            inner = node.engine.open

            async def noted(session, span=None, adapter=None, inner=inner):
                opened.append(span)
                await inner(session, span, adapter)

            node.engine.open = noted
        async with client.session(str(checkpoint), tokens=64) as session:
            await session.step(PROMPT)
            swarm.world.kill(session.ring.route[0].address.peer)
            await session.step([5])
    # Once at each of the two; again where the first answer to an opening came too late.
    assert len(opened) >= 2 and set(opened) == {Span(2, 4)}


@pytest.mark.parametrize("spans", [[Span(2, 4)] * 2, [Span(2, 3), Span(3, 4)] * 2], ids=str)
async def test_a_hop_may_die_while_it_decodes(home, checkpoint, whole, monkeypatch, spans):
    """What the first blocks gave is sent again, and neither they nor the last ones compute it again."""
    async with (
        private(home, checkpoint, "2:2", spans) as (swarm, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        asked = forwards(monkeypatch, client)

        def strike(token):
            if token == 7:
                swarm.world.kill(session.ring.route[0].address.peer)

        assert await decode(session, PROMPT, 20, strike) == whole.greedy(PROMPT, 20)
        assert len(session.reroutes) == 1
    tokens = len(PROMPT) + 20
    assert sum(asked[0]) <= tokens + 1, "the first blocks computed nothing twice, but the step under way"
    assert sum(asked[4]) == tokens - 1


async def test_a_session_whose_hops_are_all_lost_is_replayed_from_what_was_kept(
    home, checkpoint, whole, monkeypatch
):
    async with (
        private(home, checkpoint, "2:2", [Span(2, 3), Span(3, 4)] * 2) as (swarm, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        asked = forwards(monkeypatch, client)

        def strike(token):
            if token == 7:
                for hop in session.ring.route:
                    swarm.world.kill(hop.address.peer)

        assert await decode(session, PROMPT, 16, strike) == whole.greedy(PROMPT, 16)
    assert sum(asked[0]) <= len(PROMPT) + 17


async def test_a_prompt_goes_in_pieces_and_a_hop_may_die_between_them(home, checkpoint, whole):
    async with (
        private(home, checkpoint, "1:1", [Span(1, 5)] * 2, prefill_chunk=5) as (swarm, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        expected = [whole.step(PROMPT[i : i + 5]) for i in range(0, len(PROMPT), 5)]
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def _():
                swarm.world.kill(session.ring.route[0].address.peer)

            found = await session.step(PROMPT)
        assert np.array_equal(found, np.concatenate(expected))
        assert np.array_equal(await session.step([9]), whole.step([9]))


@pytest.mark.parametrize("plan", [WindowPlan(7, 1), WindowPlan(3, 4)])
async def test_tokens_that_are_guessed_ahead_change_nothing(home, repetitive, monkeypatch, plan):
    monkeypatch.setattr(sources, "choose_plan", lambda _: plan)
    monkeypatch.setattr(speculation, "LEAST_LIKELY", 0.0)
    monkeypatch.setattr(gain, "TRIAL", 1 << 30)
    guess, calls = NgramDrafter.guess, itertools.count()

    async def sometimes_wrong(self, ahead, count):
        made = await guess(self, ahead, count)
        wrong = next(calls) % 4 == 3
        return [one._replace(token=(one.token + 1) % 32) if wrong else one for one in made]

    monkeypatch.setattr(NgramDrafter, "guess", sometimes_wrong)
    guessed = accepted = 0
    async with private(home, repetitive, "2:2", [WHOLE], format="int8", wire="float32") as (swarm, client):
        for number in range(4):
            prompt = [3 + number, *([7, 9 + number, 4, 11] * 5), number + 20]
            plain = await answered(swarm.client, repetitive, prompt, max_tokens=24, speculate=False)
            ahead = await answered(client, repetitive, prompt, max_tokens=24)
            assert ahead.token_ids == plain.token_ids
            guessed += ahead.timing.speculation.guessed
            accepted += ahead.timing.speculation.accepted
    assert guessed > accepted > 0


async def test_a_conversation_goes_on_from_what_is_held(home, checkpoint, whole, monkeypatch):
    async with (
        private(home, checkpoint, "2:2", [Span(2, 4)]) as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.step([*PROMPT, 1, 2, 3])
        again = [*PROMPT, 9, 8]
        assert session.reusable(again) == len(PROMPT)
        session.roll_back(len(PROMPT))
        asked = forwards(monkeypatch, client)
        whole.step(PROMPT)
        assert np.array_equal(await session.step([9, 8]), whole.step([9, 8]))
    assert asked == {0: [2], 4: [2]}


@pytest.mark.parametrize("family", ["gemma3", "mamba"])
async def test_where_a_cache_of_the_clients_cannot_go_back_it_is_built_again(home, tmp_path, family):
    checkpoint = write_checkpoint(tmp_path / family, family)
    whole = Whole(checkpoint)
    async with (
        private(home, checkpoint, "2:2", [Span(0, 6)], format="fp32") as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        whole.step(PROMPT)
        await session.step(PROMPT)
        await session.step([7, 8, 9])
        session.roll_back(len(PROMPT))
        for token in (10, 11):
            assert np.array_equal(await session.step([token]), whole.step([token]))


async def test_eight_sessions_of_one_client_share_its_forwards(home, checkpoint, monkeypatch):
    prompts = [[number + 1, 2 * number + 3, 5] for number in range(8)]
    answers: dict[int, list[int]] = {}

    async def one(client, number):
        found = await answered(client, checkpoint, prompts[number], max_tokens=16)
        answers[number] = found.token_ids

    async with private(home, checkpoint, "2:2", [WHOLE], format="int8") as (swarm, client):
        alone = [(await answered(swarm.client, checkpoint, p, max_tokens=16)).token_ids for p in prompts]
        await one(client, 0)  # the blocks are loaded
        first = client._ends[swarm.model.digest, "int8"].first
        batches, forward = [], first.runner.forward
        monkeypatch.setattr(first.runner, "forward", lambda b: batches.append(len(b)) or forward(b))
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, client, number)
        assert [answers[number] for number in range(8)] == alone
        assert max(batches) > 1
        assert first.sessions == 0 and first.tokens_free == first.tokens


async def test_an_error_of_the_clients_own_blocks_ends_the_step_and_not_the_session(
    home, checkpoint, whole, monkeypatch
):
    async with (
        private(home, checkpoint, "2:2", [Span(2, 4)]) as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        first = (await session.advance(PROMPT, GREEDY)).token
        for engine in (session.ends._ends.first, session.ends._ends.last):
            forward = engine.runner.forward
            monkeypatch.setattr(engine.runner, "forward", lambda batch: [StepFailed("a defect")] * len(batch))
            with pytest.raises(StepFailed, match="a defect"):
                await session.advance([first], GREEDY)
            monkeypatch.setattr(engine.runner, "forward", forward)
            assert session.token_ids == PROMPT
        second = (await session.advance([first], GREEDY)).token
        assert [first, second] == whole.greedy(PROMPT, 2)


async def test_a_step_ahead_that_cannot_be_computed_is_heard_of_by_who_waits_for_it(
    home, checkpoint, whole, monkeypatch
):
    async with (
        private(home, checkpoint, "2:0", [Span(2, 6)]) as (_, client),
        client.session(str(checkpoint), tokens=64) as session,
    ):
        await session.step(PROMPT[:-1])
        runner, left = session.ends._ends.first.runner, [1]
        forward = runner.forward

        def fails_second(batch):
            left[0] -= 1
            return forward(batch) if left[0] >= 0 else [StepFailed("a defect")] * len(batch)

        monkeypatch.setattr(runner, "forward", fails_second)
        first = (await session.advance(PROMPT[-1:], GREEDY, more=True)).token
        with trio.fail_after(25), pytest.raises(StepFailed, match="a defect"):
            await session.advance([first], GREEDY)
        monkeypatch.setattr(runner, "forward", forward)
        second = (await session.advance([first], GREEDY)).token
        whole.step(PROMPT[:-1])
    expected = int(whole.step(PROMPT[-1:])[-1].argmax())
    assert [first, second] == [expected, int(whole.step([expected])[-1].argmax())]


async def test_a_client_without_room_says_that_it_is_its_own(home, checkpoint):
    async with private(home, checkpoint, "2:2", [WHOLE], kv_tokens=64) as (_, client):
        async with client.session(str(checkpoint), tokens=64):
            with pytest.raises(Busy, match="the client's own blocks"):
                async with client.session(str(checkpoint), tokens=16):
                    pass
        async with client.session(str(checkpoint), tokens=64):
            pass


@pytest.mark.parametrize("ends", ["3:3", "0:6", "7:0", "100:1"])
async def test_ends_that_leave_nothing_to_the_swarm_are_refused(home, checkpoint, ends):
    async with private(home, checkpoint, ends, [WHOLE]) as (_, client):
        with pytest.raises(UsageError, match=f"{ends} leave no block"):
            await answered(client, checkpoint, PROMPT)


async def test_blocks_between_that_nobody_serves_are_named(home, checkpoint, autojump_clock):
    async with private(home, checkpoint, "1:1", [Span(0, 3), Span(4, 6)]) as (_, client):
        with pytest.raises(NoCoverage, match="3:4"):
            async with client.session(str(checkpoint)):
                pass


async def test_what_the_clients_blocks_take_is_counted(home, checkpoint):
    async with private(home, checkpoint, "2:1", [WHOLE], format="int8") as (swarm, client):
        answer = await answered(client, checkpoint, PROMPT, max_tokens=8)
        plain = await answered(swarm.client, checkpoint, PROMPT, max_tokens=8)
        first, last = answer.own
        assert (first.span, last.span) == (Span(0, 2), Span(5, 6))
        assert first.bytes == 2 * last.bytes > 0 and first.kv_bytes == 2 * last.kv_bytes > 0
        assert first.compute_ms > 0 and last.compute_ms > 0
        assert plain.own == ()
        with pytest.raises(OutOfResources, match="own blocks take"):
            small = await swarm.add_client(private_ends="2:1", format="int8", memory=1)
            await answered(small, checkpoint, PROMPT)


def test_rows_are_found_again_for_the_same_tokens_alone():
    sent, rows = SentRows(2), np.arange(20, dtype=np.float32).reshape(10, 2)
    sent.keep([1, 2, 3], 0, 0, rows[:3])
    sent.keep([4], 3, 0, rows[3:4])
    assert np.array_equal(sent.find([2, 3, 4], 1, 0), rows[1:4])
    for wrong in (([2, 9], 1, 0), ([4, 5], 3, 0), ([2, 3], 0, 0), ([2, 3], 1, 7), ([], 0, 0)):
        assert sent.find(*wrong) is None
    sent.cut(2)
    assert sent.find([3], 2, 0) is None and sent.find([2], 1, 0) is not None
    sent.keep([6], 3, 0, rows[5:6])  # of a step before which another was cut
    assert sent.find([6], 3, 0) is None
    sent.keep([7] * 100, 2, 0, np.zeros((100, 2), np.float32))
    assert np.array_equal(sent.find([1, 2], 0, 0), rows[:2])
