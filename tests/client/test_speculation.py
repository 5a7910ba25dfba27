"""Tokens that are guessed ahead are those that come without, on real models, whatever happens on the way."""

from __future__ import annotations

import numpy as np
import pytest
import trio

from shoal.client.speculation import gain, sources, speculation
from shoal.client.speculation.controller import WindowPlan
from shoal.testing.checkpoints import write_checkpoint

from .conftest import PROMPT, THIRDS, memory_swarm

PROMPTS = [[3 + number, *([7, 9 + number, 4, 11] * 5), number + 20] for number in range(10)]
"""Each says the same again and again, so that there is something to guess."""
COUNT = 24
WAYS = [{}, {"temperature": 0.8, "seed": 5}, {"temperature": 0.8, "seed": 5, "top_k": 2}]


@pytest.fixture(scope="session")
def checkpoint(repetitive):
    """One that says again what it has said, as texts do: else n-grams guess nothing right."""
    return repetitive


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def eager(monkeypatch):
    """Guesses are sent wherever there are any, whether they pay or not: on one machine they mostly do not."""

    def begin(plan):
        monkeypatch.setattr(sources, "choose_plan", lambda _: plan)
        monkeypatch.setattr(speculation, "LEAST_LIKELY", 0.0)
        monkeypatch.setattr(gain, "TRIAL", 1 << 30)

    return begin


async def asked(swarm, checkpoint, prompt, *, count=COUNT, **options):
    answer = swarm.client.generate(str(checkpoint), prompt, max_tokens=count, **options)
    async for _ in answer:
        pass
    return answer


@pytest.mark.parametrize(
    ("format", "plan", "way"),
    [
        ("fp32", WindowPlan(1, 4), WAYS[2]),
        *[("int8", WindowPlan(7, 1), way) for way in WAYS],
        *[("bf16", WindowPlan(3, 4), way) for way in (WAYS[0], WAYS[2])],
    ],
    ids=str,
)
async def test_tokens_are_those_of_plain_decoding(home, checkpoint, eager, format, plan, way):
    eager(plan)
    async with memory_swarm(home, checkpoint, THIRDS, format=format, wire="float32") as swarm:
        guessed = accepted = 0
        for prompt in PROMPTS[: 2 if format == "fp32" else 4]:
            plain = await asked(swarm, checkpoint, prompt, speculate=False, **way)
            ahead = await asked(swarm, checkpoint, prompt, **way)
            assert ahead.token_ids == plain.token_ids
            assert plain.timing.speculation.off == "turned off"
            assert not plain.timing.speculation.guessed
            guessed += ahead.timing.speculation.guessed
            accepted += ahead.timing.speculation.accepted
        if way != WAYS[1]:  # a model of random weights that may say anything says nothing again
            assert guessed > accepted > 0


async def test_a_step_has_one_row_where_rows_do_not_stand_alone_and_at_most_eight_elsewhere(
    home, checkpoint, eager
):
    eager(WindowPlan(7, 4))
    for format, rows in (("fp32", {1}), ("int8", range(2, 9))):
        async with memory_swarm(home, checkpoint, THIRDS, format=format) as swarm:
            await asked(swarm, checkpoint, PROMPTS[0])
            steps = [step.tokens for step in swarm.client.rings.trace.steps]
        assert max(steps[1:]) in rows, steps  # after the prompt


async def test_a_step_has_one_row_where_a_hops_bits_depend_on_its_company(home, checkpoint, eager):
    eager(WindowPlan(7, 4))
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", kernels="torch") as swarm:
        client = await swarm.add_client(format="int8")  # its own part is on our kernels
        answer = client.generate(str(checkpoint), PROMPTS[0], max_tokens=COUNT)
        async for _ in answer:
            pass
        assert answer.timing.speculation.guessed
        assert {step.tokens for step in list(client.rings.trace.steps)[1:]} == {1}


class Even:
    """A grammar in which every token is even, and the 20th ends the answer."""

    def __init__(self):
        self.said = []

    def allowed(self, vocab):
        return np.arange(vocab) % 2 == 0

    def accept(self, token):
        assert not self.complete
        self.said.append(token)

    @property
    def complete(self):
        return len(self.said) == 20


async def test_penalties_and_grammar_follow_verified_tokens_alone(home, checkpoint, eager):
    from shoal.client.generate import generate
    from shoal.client.sampling import Sampling

    eager(WindowPlan(5, 3))
    sampling = Sampling(
        temperature=0.8, seed=3, repetition_penalty=1.1, frequency_penalty=0.3, top_logprobs=2
    )
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", wire="float32") as swarm:
        for prompt in PROMPTS[:4]:
            said = []
            for speculate in (False, True):
                grammar = Even()
                async with swarm.client.session(str(checkpoint), tokens=100) as session:
                    deltas = generate(
                        session,
                        prompt,
                        None,
                        sampling=sampling,
                        max_tokens=40,
                        constraint=grammar,
                        speculate=speculate,
                    )
                    got = [(d.token_ids, d.finish_reason, d.score) async for d in deltas]
                assert [token for (token,), _, _ in got] == grammar.said
                said.append(got)
            assert said[0] == said[1]
            assert len(said[0]) == 20
            assert said[0][-1][1] == "stop"


async def test_nothing_is_chosen_after_an_end_token(home, checkpoint, eager):
    from shoal.client.generate import generate
    from shoal.client.sampling import Sampling

    eager(WindowPlan(7, 4))
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", wire="float32") as swarm:
        plain = await asked(swarm, checkpoint, PROMPTS[0], speculate=False)
        end = frozenset([plain.token_ids[10]])
        expected = plain.token_ids[: plain.token_ids.index(plain.token_ids[10]) + 1]
        async with swarm.client.session(str(checkpoint), tokens=100) as session:
            deltas = generate(
                session, PROMPTS[0], None, sampling=Sampling(), max_tokens=COUNT, end_tokens=end
            )
            got = [d.token_ids[0] async for d in deltas]
            assert got == expected
            assert len(session.ahead) <= 1
            # The session goes on as if nothing had been guessed.
            again = generate(session, PROMPTS[0], None, sampling=Sampling(), max_tokens=COUNT)
            assert [d.token_ids[0] async for d in again] == plain.token_ids


@pytest.mark.parametrize("format", ["fp32", "int8"])
async def test_a_hop_may_die_while_windows_are_on_their_way(home, checkpoint, eager, format):
    eager(WindowPlan(3, 4))
    async with memory_swarm(home, checkpoint, [*THIRDS, *THIRDS], format=format, wire="float32") as swarm:
        plain = await asked(swarm, checkpoint, PROMPTS[1], speculate=False)
        answer = swarm.client.generate(str(checkpoint), PROMPTS[1], max_tokens=COUNT)
        async for _ in answer:
            if len(answer.token_ids) == 12:
                peer = answer.route[1].peer
                swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == peer))
        assert answer.token_ids == plain.token_ids
        assert [reroute.way for reroute in answer.reroutes] == ["resend"]


@pytest.mark.parametrize("format", ["int8", "bf16"])
async def test_many_sessions_at_once_each_get_their_own_tokens(home, checkpoint, eager, format):
    eager(WindowPlan(5, 3))
    async with memory_swarm(home, checkpoint, THIRDS, format=format, wire="float32") as swarm:
        plain = [(await asked(swarm, checkpoint, p, speculate=False)).token_ids for p in PROMPTS[:8]]
        found = {}

        async def one(number):
            found[number] = (await asked(swarm, checkpoint, PROMPTS[number])).token_ids

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(one, number)
        assert [found[number] for number in range(8)] == plain
        for node in swarm.nodes:
            await node.server.wait_idle()
            assert node.engine.tokens_free == node.engine.tokens


async def test_nothing_is_guessed_where_a_hop_cannot_take_tokens_back(home, tmp_path, eager):
    eager(WindowPlan(1, 4))
    checkpoint = write_checkpoint(tmp_path / "mamba", "mamba")
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32") as swarm:
        answer = await asked(swarm, checkpoint, PROMPT)
        assert answer.timing.speculation.off == "a hop cannot take tokens back"
        assert not answer.timing.speculation.guessed
