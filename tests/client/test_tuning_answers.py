"""Answers by the adapter that is tuned, and steps by how good they were: reinforcement learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from shoal.client.sampling import Sampling
from shoal.client.tuning.answers import TunedAnswer, group_advantages
from shoal.client.tuning.data import Example
from shoal.client.tuning.open import open_tuner
from shoal.client.tuning.remote import RemoteBlocks
from shoal.client.tuning.tuner import TuningOptions
from shoal.errors import UsageError
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

OPTIONS = TuningOptions(rank=4, rate=1e-2, warmup=1, batch_tokens=40)
TRAINS = {"format": "fp32", "train": "on"}
HALVES = [Span(0, 3), Span(3, 6)]
PROMPTS = [(5, 6, 7), (9, 10), (5, 6, 7)]


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def test_advantages_are_deviations_of_a_group_from_its_mean():
    assert group_advantages([1.0, 0.0, 1.0, 0.0]) == pytest.approx([1, -1, 1, -1], rel=1e-3)
    assert group_advantages([0.2, 0.2]) == [0.0, 0.0]


def test_weights_are_one_for_each_token_of_the_answer_and_finite():
    answer = TunedAnswer((1, 2), (3, 4), (-0.1, -0.2))
    assert answer.example(-0.5) == Example((1, 2, 3, 4), 2, weights=(-0.5, -0.5))
    with pytest.raises(UsageError, match="1 weights for 2 tokens"):
        Example((1, 2, 3), 1, weights=(1.0,))
    with pytest.raises(UsageError, match="a weight is NaN"):
        answer.example(float("nan"))


async def test_a_step_by_weights_is_what_torch_makes_of_them(home, tmp_path, checkpoint):
    examples = [
        Example((5, 6, 7, 8), 1, weights=(1.0, -0.5, 0.0)),
        Example((9, 10, 11), 2, weights=(-2.0,)),
        Example((12, 13, 14), 1),
    ]
    async with memory_swarm(home, checkpoint, HALVES, **TRAINS) as swarm:
        options = replace(OPTIONS, clip=0.0)
        tuner = await open_tuner(swarm.client, str(checkpoint), None, options, tmp_path / "out")
        begun = {name: half.detach().clone() for name, half in tuner.adapter.named().items()}
        found = (await tuner.learn(examples)).loss
        gradients = {name: half.grad.clone() for name, half in tuner.adapter.named().items()}
        with pytest.raises(UsageError, match="nothing to learn from"):
            await tuner.learn([])
        with pytest.raises(UsageError, match="nothing to learn from"):
            await anext(tuner.run())
        tuner.close()
    model, learnt = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval(), 6
    losses = []
    for example in examples:
        ids = torch.tensor([example.token_ids])
        logits = model(ids[:, :-1], use_cache=False).logits[0, example.learnt - 1 :]
        each = functional.cross_entropy(logits, ids[0, example.learnt :], reduction="none")
        losses.append((each * torch.tensor(example.weights or (1.0,) * len(each))).sum() / learnt)
    assert found == pytest.approx(float(sum(losses).detach()), rel=1e-5)
    # B begins as zeros, so A has no gradients yet, and B has those of the layer's weights, by A.
    sum(losses).backward()
    whole = model.model.layers[2].self_attn.q_proj.weight.grad
    path = "base_model.model.model.layers.2.self_attn.q_proj.lora_{}.weight"
    assert float(gradients[path.format("A")].abs().max()) == 0
    expected = whole @ begun[path.format("A")].T * tuner.adapter.scale
    assert torch.allclose(gradients[path.format("B")], expected, rtol=1e-3, atol=1e-6)


async def test_answers_that_begin_alike_are_computed_once_also_where_they_fill_many_batches(
    home, tmp_path, checkpoint, monkeypatch
):
    asked, forward = [], RemoteBlocks.forward

    async def counted(blocks, hidden, lengths):
        asked.append(lengths)
        return await forward(blocks, hidden, lengths)

    monkeypatch.setattr(RemoteBlocks, "forward", counted)
    async with memory_swarm(home, checkpoint, HALVES, **TRAINS) as swarm:
        tuner = await open_tuner(swarm.client, str(checkpoint), None, OPTIONS, tmp_path / "out")
        answers = await tuner.sample(
            PROMPTS[:2] * 16, Sampling(temperature=1.0), max_tokens=1, seed=1
        )  # 80 tokens, and 40 make a batch
        tuner.close()
    assert asked == [[3, 2]]
    assert len({answer.token_ids for answer in answers[::2]}) > 1


async def test_a_soft_prompts_rows_count_in_batches_and_in_what_fits_into_a_message(
    home, tmp_path, checkpoint, monkeypatch
):
    asked, forward = [], RemoteBlocks.forward

    async def counted(blocks, hidden, lengths):
        asked.append(lengths)
        return await forward(blocks, hidden, lengths)

    monkeypatch.setattr(RemoteBlocks, "forward", counted)
    options = TuningOptions(method="prompt", prompt_tokens=16, batch_tokens=40)
    async with memory_swarm(home, checkpoint, HALVES, **TRAINS) as swarm:
        tuner = await open_tuner(swarm.client, str(checkpoint), None, options, tmp_path / "out")
        most = tuner._blocks.most_rows
        greedy = {"sampling": Sampling(), "seed": 1}
        await tuner.sample([*PROMPTS, (7, 8)], max_tokens=1, **greedy)
        with pytest.raises(UsageError, match=f"{most - 15} tokens, and {most - 16} fit"):
            await tuner.sample(PROMPTS[:1], max_tokens=most - 15 - len(PROMPTS[0]), **greedy)
        tuner.close()
    assert asked == [[19, 18], [18]]


async def test_answers_are_those_of_the_adapter_as_it_is_now_and_a_run_goes_on_after_a_kill(
    home, tmp_path, checkpoint
):
    greedy = {"sampling": Sampling(), "max_tokens": 4, "seed": 1}
    async with memory_swarm(home, checkpoint, HALVES, **TRAINS) as swarm:

        async def opened():
            return await open_tuner(swarm.client, str(checkpoint), None, OPTIONS, tmp_path / "out")

        tuner = await opened()
        before = await tuner.sample(PROMPTS, **greedy)
        for _ in range(3):
            await tuner.learn([Example((*PROMPTS[0], 40, 41, 42, 43), 3)])
        await tuner.save()
        after = await tuner.sample(PROMPTS, **greedy)
        drawn = [
            await tuner.sample(PROMPTS, Sampling(temperature=1.0), max_tokens=2, seed=seed)
            for seed in (3, 3, 4)
        ]
        tuner.close()
        again = await opened()
        assert await again.resume() == 3
        assert await again.sample(PROMPTS, **greedy) == after
        assert (await again.learn([Example((1, 2), 1)])).step == 4
        with pytest.raises(UsageError, match="of no tokens"):
            await again.sample([()], **greedy)
        again.close()
    assert before[0].token_ids != after[0].token_ids
    assert after[0] == after[2]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0].token_ids != drawn[0][2].token_ids  # each has its own chance
    assert load_file(tmp_path / "out/adapter_model.safetensors")
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    ids = torch.tensor([[*PROMPTS[1], *after[1].token_ids]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(PROMPTS[1]) - 1 : -1].log_softmax(-1)
    assert logprobs.argmax(-1).tolist() == list(after[1].token_ids)
    expected = logprobs.max(-1).values.tolist()
    assert list(after[1].logprobs) == pytest.approx(expected, rel=1e-4, abs=1e-5)
