"""Where rotary frequencies change with the sequence's length, the tokens are transformers' at any length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.client.generate import generate
from shoal.client.prompt_scores import score_prompt
from shoal.client.sampling import Sampler, Sampling
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

LIMIT = 64
"""Tokens up to which the models here have their first frequencies."""
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0 + i for i in range(8)],
    "original_max_position_embeddings": LIMIT,
}
LONG = {"rope_parameters": LONGROPE, "max_position_embeddings": 256}
MODELS = {
    # Transformers computes the keys of these two again, where they grow beyond the limit …
    "phi3": ("phi3", {**LONG, "original_max_position_embeddings": LIMIT}),
    "phimoe": (
        "phimoe",
        {
            **LONG,
            "rope_parameters": {**LONGROPE, "short_mscale": 1.0, "long_mscale": 1.3},
            "original_max_position_embeddings": LIMIT,
        },
    ),
    # … and keeps those of all others.
    "llama": ("llama", LONG),
    "dynamic": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
            "max_position_embeddings": LIMIT,
        },
    ),
}
GREEDY = Sampler(Sampling())
HALVES = [Span(0, 3), Span(3, 6)]
EACH = pytest.mark.parametrize("reference", ["phi3", "llama", "dynamic"], indirect=True)
"""Keys computed again, keys that stay, and frequencies that change with each token."""
TWO = pytest.mark.parametrize("reference", ["phi3", "dynamic"], indirect=True)


def text(length: int) -> list[int]:
    return [(i * 37) % 250 + 5 for i in range(length)]


class Reference:
    """A model in transformers, with its own ``generate``: loaded anew each time, for it remembers lengths."""

    def __init__(self, folder):
        self.folder = folder
        self.answers = {}

    @property
    def model(self):
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    def answer(self, prompt, count):
        asked = (len(prompt), count)  # of all prompts here, one has so many tokens
        if asked not in self.answers:
            options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
            ids = self.model.generate(torch.tensor([prompt]), max_new_tokens=count, **options)
            self.answers[asked] = ids[0].tolist()[len(prompt) :]
        return self.answers[asked]

    @torch.inference_mode()
    def logits(self, tokens):
        return self.model(torch.tensor([tokens])).logits[0]


@pytest.fixture(scope="module", params=list(MODELS))
def reference(request, tmp_path_factory):
    family, changes = MODELS[request.param]
    folder = tmp_path_factory.mktemp("long") / request.param
    return Reference(write_checkpoint(folder, family, **changes))


def swarm_of(home, reference, spans=HALVES, **options):
    return memory_swarm(home, reference.folder, spans, format="fp32", **options)


async def answer(session, prompt, count):
    sampling = Sampling()
    return [
        token
        async for delta in generate(session, prompt, None, sampling=sampling, max_tokens=count)
        for token in delta.token_ids
    ]


def near(a, b):
    """Equal but for the rounding of forwards with other numbers of rows; other frequencies are far beyond."""
    return np.allclose(a, b, atol=1e-4)


async def test_an_answer_that_grows_beyond_the_limit(tmp_path, reference):
    async with (
        swarm_of(tmp_path, reference) as swarm,
        swarm.client.session(str(reference.folder), tokens=200) as session,
    ):
        assert await answer(session, text(40), 40) == reference.answer(text(40), 40)


async def test_a_prompt_beyond_the_limit_in_pieces(tmp_path, reference):
    """Its first piece ends before the limit, and has the frequencies of the whole."""
    async with (
        swarm_of(tmp_path, reference) as swarm,
        swarm.client.session(str(reference.folder), tokens=200) as session,
    ):
        assert near(await session.step(text(100), chunk=16), reference.logits(text(100)))
        assert await answer(session, text(100), 8) == reference.answer(text(100), 8)


@EACH
@pytest.mark.parametrize(("token", "place"), [(LIMIT - 39, 0), (LIMIT - 30, 1)], ids=["at", "after"])
async def test_a_hop_may_die_at_the_limit(tmp_path, reference, token, place):
    """Whoever takes its place fills its cache with the keys that were lost, each with its own frequencies."""
    prompt = text(40)
    async with (
        swarm_of(tmp_path, reference, [*HALVES, *HALVES]) as swarm,
        swarm.client.session(str(reference.folder), tokens=200) as session,
    ):
        chosen = [(await session.advance(prompt, GREEDY, more=True)).token]
        while len(chosen) < 40:
            if len(chosen) == token:
                dead = session.ring.route[place].address.peer
                swarm.kill(next(i for i, network in enumerate(swarm.networks) if network.peer == dead))
            chosen.append((await session.advance(chosen[-1:], GREEDY, more=True)).token)
        assert chosen == reference.answer(prompt, 40)
        assert session.reroutes


@TWO
async def test_a_session_may_go_back_before_the_limit_and_beyond_it_again(tmp_path, reference):
    async with (
        swarm_of(tmp_path, reference) as swarm,
        swarm.client.session(str(reference.folder), tokens=200) as session,
    ):
        await session.step(text(100))
        session.roll_back(50)
        assert near(await session.step([7]), reference.logits([*text(50), 7])[-1:])
        session.roll_back(0)
        await session.step(text(100))
        session.roll_back(99)  # the last token again: the sequence is as long as it was
        assert near(await session.step(text(100)[-1:]), reference.logits(text(100))[-1:])
        assert len(session.token_ids) == 100


@EACH
async def test_the_next_turn_reuses_what_has_the_same_frequencies(tmp_path, reference):
    async with (
        swarm_of(tmp_path, reference) as swarm,
        swarm.client.session(str(reference.folder), tokens=250) as session,
    ):
        for prompt in (text(30), text(50), text(90), text(120), text(40)):
            assert await answer(session, prompt, 8) == reference.answer(prompt, 8)
        assert session.reusable(text(45)) == 40
        assert session.reusable(text(90)) == 0


@TWO
async def test_a_prompt_is_scored_as_a_whole(tmp_path, reference, monkeypatch):
    monkeypatch.setattr("shoal.client.prompt_scores.SCORED_AT_ONCE", 24)
    prompt = text(100)
    async with (
        swarm_of(tmp_path, reference) as swarm,
        swarm.client.session(str(reference.folder), tokens=200) as session,
    ):
        scores = await score_prompt(session, prompt, 0)
    expected = torch.log_softmax(reference.logits(prompt), -1)
    for i, found in enumerate(scores[1:]):
        assert found is not None and abs(found.logprob - float(expected[i, prompt[i + 1]])) < 1e-4


@TWO
async def test_sessions_of_other_lengths_side_by_side(tmp_path, reference):
    async with (
        swarm_of(tmp_path, reference) as swarm,
        swarm.client.session(str(reference.folder), tokens=200) as long,
        swarm.client.session(str(reference.folder), tokens=200) as short,
    ):
        await long.step(text(150))
        assert await answer(short, text(60), 10) == reference.answer(text(60), 10)
