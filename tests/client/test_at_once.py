"""Results that are answered where they come: the same tokens; what is not plain goes the ordinary way."""

from __future__ import annotations

import math

import pytest
import trio

from shoal.client.ring import rings as rings_module
from shoal.client.sampling import Sampler, Sampling
from shoal.executor import batcher as batcher_module
from shoal.executor.kernels.c_kernels import library
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

from .conftest import PROMPT

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels are not built")
COUNT = 24
HALVES = [Span(0, 3), Span(3, 6)]


class Answered:
    """How many records of results were answered where they came."""

    records = 0


@pytest.fixture
def answered(monkeypatch):
    answer = rings_module.answer_at_once

    def counting(*came):
        done = answer(*came)
        Answered.records += done
        return done

    Answered.records = 0
    monkeypatch.setattr(rings_module, "answer_at_once", counting)
    monkeypatch.setattr(batcher_module, "AT_ONCE_S", math.inf)  # on a busy machine forwards may take long
    return Answered


async def tokens(client, checkpoint, prompt=PROMPT, sampling=Sampling(), count=COUNT, before=None):  # noqa: B008
    """An answer's tokens; its session has room for no more."""
    async with client.session(str(checkpoint), tokens=len(prompt) + count) as session:
        sampler, piece, chosen = Sampler(sampling), prompt, []
        for number in range(count):
            if before is not None:
                before(session, number)
            piece = [(await session.advance(piece, sampler, more=True)).token]
            chosen += piece
        return chosen, [reroute.way for reroute in session.reroutes]


async def test_an_answer_is_the_same_as_by_the_thread_that_computes(tmp_path, checkpoint, answered):
    async with memory_swarm(tmp_path / "home", checkpoint, HALVES, format="int8") as swarm:
        chosen, _ = await tokens(swarm.client, checkpoint)
        # Not the prompt; not the last, as there is no room for the step that would follow it.
        assert answered.records >= COUNT - 4
        before = answered.records
        for ends in swarm.client.rings.ends:
            ends.decode_steps = None
        assert (await tokens(swarm.client, checkpoint))[0] == chosen
        assert answered.records == before


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0, seed=3),
        Sampling(top_logprobs=0),
        Sampling(logit_bias={7: 1.0}),
        Sampling(repetition_penalty=1.1),
        Sampling(presence_penalty=0.1),
        Sampling(frequency_penalty=0.1),
    ],
    ids=lambda sampling: repr(sampling)[9:40],
)
async def test_other_tokens_than_the_likeliest_are_chosen_the_ordinary_way(
    tmp_path, checkpoint, answered, sampling
):
    assert not Sampler(sampling).plain
    async with memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], format="int8") as swarm:
        await tokens(swarm.client, checkpoint, sampling=sampling, count=6)
    assert answered.records == 0


async def test_an_answer_goes_on_when_a_hop_dies_and_when_it_is_taken_back(tmp_path, checkpoint, answered):
    async with memory_swarm(tmp_path / "home", checkpoint, HALVES * 2, format="int8") as swarm:
        whole, _ = await tokens(swarm.client, checkpoint)

        def strike(session, number):
            if number == 9:
                last = session.ring.route[-1].address.peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == last))
            elif number in (5, 15):
                session.roll_back(len(session.token_ids))  # what was sent ahead is given up, and sent again

        before = answered.records
        assert await tokens(swarm.client, checkpoint, before=strike) == (whole, ["resend"])
        assert answered.records > before + COUNT // 2


async def test_a_result_of_a_step_that_was_given_up_is_answered_by_nobody(tmp_path, checkpoint, answered):
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], format="int8") as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        sampler = Sampler(Sampling())
        token = (await session.advance(PROMPT, sampler, more=True)).token
        with trio.CancelScope() as scope:
            scope.cancel()
            await session.advance([token], sampler, more=True)
        await trio.sleep(0.05)
        assert (answered.records, session.in_flight) == (0, 0)
        assert session.token_ids == PROMPT
        assert (await session.advance([token], sampler)).token == (await tokens(swarm.client, checkpoint))[0][
            1
        ]


async def test_sessions_side_by_side_each_get_their_own_tokens(tmp_path, checkpoint, answered):
    async with memory_swarm(tmp_path / "home", checkpoint, HALVES, format="int8") as swarm:
        prompts = [[3 + number, *PROMPT] for number in range(4)]
        alone = [(await tokens(swarm.client, checkpoint, prompt))[0] for prompt in prompts]
        together: dict[int, list[int]] = {}

        async def one(number):
            together[number], _ = await tokens(swarm.client, checkpoint, prompts[number])

        before = answered.records
        async with trio.open_nursery() as nursery:
            for number in range(len(prompts)):
                nursery.start_soon(one, number)
        assert [together[number] for number in range(len(prompts))] == alone
        assert answered.records > before


async def test_a_token_takes_as_long_as_its_step_was_away(tmp_path, checkpoint, answered):
    """What the client computes for it is none of the hops', who would be given up as slow for it."""
    async with (
        memory_swarm(tmp_path / "home", checkpoint, [Span(0, 6)], format="int8") as swarm,
        swarm.client.session(str(checkpoint), tokens=64) as session,
    ):
        sampler, piece = Sampler(Sampling()), PROMPT
        for _ in range(8):
            began = trio.current_time()
            advanced = await session.advance(piece, sampler, more=True)
            piece = [advanced.token]
        assert answered.records
        assert advanced.returned.token == advanced.token
        assert 0 < advanced.returned.took_s <= trio.current_time() - began + 0.5
        assert [time.hop for time in advanced.times] == [0]
