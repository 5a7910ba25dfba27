"""A draft model guesses on the client's own machine: the tokens stay those that come without it."""

from __future__ import annotations

import json
import shutil
from functools import partial

import numpy as np
import pytest
import trio
from safetensors.numpy import load_file, save_file

from shoal.client.speculation import draft_holder, draft_model, gain, model_drafter, sources, speculation
from shoal.client.speculation.controller import WindowPlan
from shoal.errors import UsageError
from shoal.testing.checkpoints import write_checkpoint

from .conftest import THIRDS, memory_swarm

PROMPTS = [[3 + number, *([7, 9 + number, 4, 11] * 3), number + 20, 200 - number] for number in range(8)]
COUNT = 12
WAYS = [{}, {"temperature": 0.8, "seed": 5}]


@pytest.fixture(scope="session")
def checkpoint(repetitive):
    """One that says again what it has said, so that n-grams guess beside the draft model."""
    return repetitive


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def eager(monkeypatch):
    """Guesses are sent, and waited for, whether they pay or not: on one machine they do not."""
    monkeypatch.setattr(sources, "choose_plan", lambda _: WindowPlan(3, 3))
    monkeypatch.setattr(sources, "HIDDEN_SHARE", 1e9)
    monkeypatch.setattr(speculation, "LEAST_LIKELY", 0.0)
    monkeypatch.setattr(gain, "TRIAL", 1 << 30)
    monkeypatch.setattr(model_drafter, "LEAST_LATE_S", 10.0)


@pytest.fixture(scope="session")
def similar(checkpoint, tmp_path_factory):
    """The same model with noise on its weights: it often says the same."""
    folder = tmp_path_factory.mktemp("similar") / "model"
    shutil.copytree(checkpoint, folder)
    chance = np.random.default_rng(1)
    for file in folder.glob("*.safetensors"):
        noisy = {
            name: tensor + np.float32(0.1 * tensor.std()) * chance.standard_normal(tensor.shape, np.float32)
            for name, tensor in load_file(file).items()
        }
        save_file(noisy, file, {"format": "pt"})
    return folder


async def asked(swarm, checkpoint, prompt, *, count=COUNT, **options):
    answer = swarm.client.generate(str(checkpoint), prompt, max_tokens=count, **options)
    async for _ in answer:
        pass
    return answer


async def loaded(swarm, checkpoint):
    """Ask until the draft model is in memory."""
    with trio.fail_after(60):
        while swarm.client.draft.loaded is None:
            await asked(swarm, checkpoint, PROMPTS[0])


async def freed(swarm):
    while swarm.client.draft.loaded is not None:  # noqa: ASYNC110  nobody is told
        await trio.sleep(0.02)


def drafts(answers):
    found = [answer.timing.speculation.sources.get("draft") for answer in answers]
    return sum(s.guessed for s in found if s), sum(s.accepted for s in found if s)


async def test_eight_prompts_greedy_and_seeded_alone_and_among_others_are_answered_as_without(
    home, checkpoint, similar, eager
):
    options = {"format": "int8", "wire": "float32", "draft": str(similar)}
    async with memory_swarm(home, checkpoint, THIRDS, **options) as swarm:
        ask = partial(asked, swarm, checkpoint)
        await loaded(swarm, checkpoint)
        plain = {}
        alone = []
        for way, options in enumerate(WAYS):
            for number, prompt in enumerate(PROMPTS):
                plain[way, number] = (await ask(prompt, speculate=False, **options)).token_ids
                alone.append(await ask(prompt, **options))
                assert alone[-1].token_ids == plain[way, number]
        together = []

        async def one(way, number):
            answer = await ask(PROMPTS[number], **WAYS[way])
            together.append(answer)
            assert answer.token_ids == plain[way, number]

        for first in range(0, len(plain), 8):
            async with trio.open_nursery() as nursery:
                for key in list(plain)[first : first + 8]:
                    nursery.start_soon(one, *key)
        assert len(together) == len(alone) == 2 * len(PROMPTS)
        for answers in (alone, together):
            guessed, accepted = drafts(answers)
            assert 0.95 * guessed > accepted > 0.1 * guessed > 5
            assert any("ngram" in answer.timing.speculation.sources for answer in answers)
        model = swarm.client.draft.loaded
        assert model.blocks.sessions == 0
        assert model.blocks.tokens_free == model.blocks.tokens


async def test_a_draft_of_other_tokens_is_refused_with_what_to_choose(home, checkpoint, tmp_path):
    stranger = write_checkpoint(tmp_path / "stranger", "llama")
    tokenizer = json.loads((stranger / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    (stranger / "tokenizer.json").write_text(json.dumps(tokenizer))
    async with memory_swarm(home, checkpoint, THIRDS, draft=str(stranger)) as swarm:
        with pytest.raises(UsageError, match="2 tokens differ, the first is 67: 'a' and 'b'") as error:
            await asked(swarm, checkpoint, PROMPTS[0])
        assert "same family" in error.value.check
        answer = await asked(swarm, checkpoint, PROMPTS[0], draft=False)
        assert len(answer.token_ids) == COUNT


async def test_a_draft_that_cannot_be_loaded_is_said_and_answers_go_on_without_it(
    home, checkpoint, eager, tmp_path
):
    broken = write_checkpoint(tmp_path / "broken", "llama", num_hidden_layers=1)
    (weights,) = broken.glob("*.safetensors")
    tensors = load_file(weights)
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, weights, {"format": "pt"})
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", draft=str(broken)) as swarm:
        with trio.fail_after(60):
            while not (await asked(swarm, checkpoint, PROMPTS[0])).timing.speculation.draft_off:
                pass
        answer = await asked(swarm, checkpoint, PROMPTS[0], count=100)
        assert (
            "1 tensors are missing, model.layers.0.mlp.up_proj.weight" in answer.timing.speculation.draft_off
        )
        assert len(answer.token_ids) == 100
        assert swarm.client.draft.loaded is None


@pytest.mark.parametrize("where", ["load", "open", "guess"])
async def test_whatever_a_draft_fails_with_is_said_and_answers_go_on_without_it(
    home, checkpoint, eager, monkeypatch, where
):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    async with memory_swarm(home, checkpoint, THIRDS, format="int8", draft=str(checkpoint)) as swarm:
        plain = (await asked(swarm, checkpoint, PROMPTS[0], speculate=False)).token_ids
        if where == "load":
            monkeypatch.setattr(draft_holder, "load_draft", fail)
        else:
            await loaded(swarm, checkpoint)
            monkeypatch.setattr(draft_model.DraftModel, where, fail)
        off = ""
        with trio.fail_after(60):
            while not off:
                answer = await asked(swarm, checkpoint, PROMPTS[0])
                off = answer.timing.speculation.draft_off
                assert answer.token_ids == plain
        assert off == "the draft model failed: RuntimeError: out of memory"


async def test_it_is_freed_when_unused_and_loaded_again(home, checkpoint, eager, monkeypatch):
    monkeypatch.setattr(draft_holder, "LOOK_EVERY_S", 0.02)
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", draft=str(checkpoint)) as swarm:
        for _ in range(2):
            monkeypatch.setattr(draft_holder, "UNUSED_S", 300.0)
            await loaded(swarm, checkpoint)
            assert drafts([await asked(swarm, checkpoint, PROMPTS[0], count=40, temperature=3.0, seed=5)])[0]
            monkeypatch.setattr(draft_holder, "UNUSED_S", 0.05)
            with trio.fail_after(60):
                await freed(swarm)


async def test_guesses_that_come_late_are_not_waited_for(home, checkpoint, eager, monkeypatch):
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", draft=str(checkpoint)) as swarm:
        ask = partial(asked, swarm, checkpoint, PROMPTS[0], count=40, temperature=3.0, seed=5)
        plain = (await ask(speculate=False)).token_ids
        await loaded(swarm, checkpoint)
        monkeypatch.setattr(model_drafter, "LEAST_LATE_S", 0.0)
        monkeypatch.setattr(model_drafter, "LATE", 0.0)
        late = await ask()
        assert late.token_ids == plain
        assert drafts([late]) == (0, 0)
        monkeypatch.setattr(model_drafter, "LEAST_LATE_S", 10.0)
        again = await ask()
        assert again.token_ids == plain
        assert drafts([again])[0] > 0


async def test_where_it_does_not_pay_it_is_not_even_loaded(home, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS, format="int8", draft=str(checkpoint)) as swarm:
        swarm.client.draft.expected_s = 10.0
        await swarm.client.draft.check(swarm.model)
        swarm.client.draft.expected_s = 10.0
        answer = await asked(swarm, checkpoint, PROMPTS[0], count=60)
        assert answer.timing.speculation.draft == str(checkpoint)
        assert swarm.client.draft.loaded is None
