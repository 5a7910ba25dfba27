"""Tuning through the blocks of others is what PEFT and torch do in one process."""

from __future__ import annotations

import json
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import TuningOptions
from shoal.errors import NoCoverage, StepFailed, UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_settings, memory_swarm
from shoal.types import Span

from .conftest import PROMPT, THIRDS, Whole

FAMILIES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gemma3": ["q_proj", "o_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}
STEPS = 4
OPTIONS = TuningOptions(rank=8, rate=1e-3, warmup=2, batch_tokens=90, accumulate=2, epochs=3, save_every=2)
TRAINS = {"format": "fp32", "train": "on"}


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def data_file(folder, count=12):
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i}?"},
                {"role": "assistant", "content": f"It is {i}."},
            ]
        }
        if i % 2
        else {"prompt": f"Say {i}: ", "completion": "yes " * (i + 1)}
        for i in range(count)
    ]
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def tuned(swarm, checkpoint, path, folder, options, before=None, **data):
    """The losses of a run, and its tuner."""
    tuner = await open_tuner(swarm, str(checkpoint), TuningData(path=path, **data), options, folder)
    if before is not None:
        before(tuner)
    return [step async for step in tuner.run()], tuner


class Local:
    """The same run by PEFT and torch in one process."""

    def __init__(self, checkpoint, tuner, layers):
        base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        config = LoraConfig(
            r=OPTIONS.rank, lora_alpha=OPTIONS.alpha, target_modules=layers, task_type="CAUSAL_LM"
        )
        self.model = get_peft_model(base, config)
        self.model.eval()  # frozen blocks drop nothing out, here or there
        self.parameters = dict(self.model.named_parameters())
        for name, half in tuner.adapter.named().items():
            self.of(name).data.copy_(half.detach())
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        assert len(wanted) == len(tuner.adapter.parameters)
        self.optimizer = torch.optim.AdamW(wanted, lr=OPTIONS.rate, weight_decay=0.0)

    def of(self, name):
        return self.parameters[name.replace(".weight", ".default.weight")]

    def step(self, step, number):
        self.optimizer.zero_grad()
        learnt, total = sum(example.answer_tokens for batch in step for example in batch), 0.0
        for example in (example for batch in step for example in batch):
            ids = torch.tensor([example.token_ids])
            logits = self.model(ids[:, :-1], use_cache=False).logits[0, example.learnt - 1 :]
            loss = functional.cross_entropy(logits, ids[0, example.learnt :], reduction="sum") / learnt
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = OPTIONS.rate * min(1.0, (number + 1) / OPTIONS.warmup)
        self.optimizer.step()
        return total


@pytest.mark.models
@pytest.mark.parametrize("family", FAMILIES)
async def test_it_equals_peft_in_one_process_for_each_family(tmp_path, family):
    checkpoint = write_checkpoint(tmp_path / family, family)
    options = TuningOptions(
        **{name: getattr(OPTIONS, name) for name in OPTIONS.__slots__}
        | {"layers": tuple(FAMILIES[family]), "steps": STEPS}
    )
    local: list[Local] = []
    async with memory_swarm(tmp_path / "home", checkpoint, THIRDS, **TRAINS) as swarm:
        start = partial(Local, checkpoint, layers=FAMILIES[family])
        steps, tuner = await tuned(
            swarm.client,
            checkpoint,
            data_file(tmp_path),
            tmp_path / "out",
            options,
            before=lambda tuner: local.append(start(tuner)),
        )
    reference = local[0]
    expected = [reference.step(step, number) for number, step in enumerate(tuner._plan)]
    assert len(steps) == STEPS
    for found, loss in zip(steps, expected, strict=True):
        assert found.loss == pytest.approx(loss, rel=1e-5)
    moved = 0.0
    for name, half in tuner.adapter.named().items():
        wanted = reference.of(name).detach()
        assert torch.allclose(half.detach(), wanted, atol=1e-4, rtol=1e-4), name
        moved += float(half.detach().abs().sum()) if "lora_B" in name else 0.0
    assert moved > 0
    saved = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), tmp_path / "out"
    )
    ids = torch.tensor([PROMPT])
    assert torch.allclose(saved(ids).logits, reference.model.eval()(ids).logits, atol=1e-3)


async def test_what_was_tuned_is_served_and_gives_what_peft_gives(home, tmp_path, checkpoint):
    async with memory_swarm(home, checkpoint, THIRDS, **TRAINS) as swarm:
        steps, _ = await tuned(swarm.client, checkpoint, data_file(tmp_path), tmp_path / "mine", OPTIONS)
        assert steps[-1].loss < steps[0].loss
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    peft = Whole(checkpoint)
    peft.model = PeftModel.from_pretrained(base, tmp_path / "mine").get_base_model().eval()
    async with memory_swarm(home, checkpoint, THIRDS, adapter=[str(tmp_path / "mine")]) as swarm:
        answer = swarm.client.generate(f"{checkpoint}:mine", PROMPT, max_tokens=8)
        found = [token async for delta in answer for token in delta.token_ids]
    assert found == peft.greedy(PROMPT, 8)[: len(found)]


@pytest.mark.parametrize(
    "what", [{"rank": 4}, {"method": "prompt", "prompt_tokens": 5}], ids=["lora", "prompt"]
)
async def test_a_hop_that_dies_in_a_step_is_replaced_and_what_is_learnt_is_the_same(
    home, tmp_path, checkpoint, what
):
    path, found = data_file(tmp_path), {}
    for kills in (False, True):
        async with memory_swarm(home, checkpoint, THIRDS, **TRAINS) as swarm:
            await swarm.add_node(Span(2, 6), **TRAINS)
            options = TuningOptions(**what, batch_tokens=90, steps=3, epochs=2)
            data, folder = TuningData(path=path), tmp_path / f"out-{kills}"
            tuner = await open_tuner(swarm.client, str(checkpoint), data, options, folder)
            backward = tuner._blocks.backward

            async def dying(passed, gradients, swarm=swarm, tuner=tuner, backward=backward, kills=kills):
                if kills and not tuner._blocks.replaced:
                    last = tuner._blocks.route[-1].address.peer
                    swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == last))
                return await backward(passed, gradients)

            tuner._blocks.backward = dying
            steps = [step async for step in tuner.run()]
            assert steps[-1].replaced == int(kills)
            found[kills] = load_file(folder / "adapter_model.safetensors"), [step.loss for step in steps]
    assert found[True][1] == pytest.approx(found[False][1], rel=1e-6)
    for name, half in found[False][0].items():
        assert torch.allclose(found[True][0][name], half, atol=1e-6), name


async def test_a_run_that_was_given_up_goes_on_where_it_was_and_comes_to_the_same(home, tmp_path, checkpoint):
    path = data_file(tmp_path)
    async with memory_swarm(home, checkpoint, [Span(0, 6)], **TRAINS) as swarm:
        whole, _ = await tuned(swarm.client, checkpoint, path, tmp_path / "whole", OPTIONS)
        tuner = await open_tuner(
            swarm.client, str(checkpoint), TuningData(path=path), OPTIONS, tmp_path / "cut"
        )
        async for step in tuner.run():
            if step.step == 3:  # one beyond the last checkpoint
                break
        rest, _ = await tuned(swarm.client, checkpoint, path, tmp_path / "cut", OPTIONS)
        assert [step.step for step in rest] == list(range(3, len(whole) + 1))
        assert [step.loss for step in rest] == [step.loss for step in whole[2:]]
        with pytest.raises(UsageError, match="a checkpoint of another run: rate differ"):
            other = TuningOptions(**{n: getattr(OPTIONS, n) for n in OPTIONS.__slots__} | {"rate": 0.5})
            await tuned(swarm.client, checkpoint, path, tmp_path / "cut", other)
    ends = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    first, second = ends
    assert all(torch.equal(first[name], second[name]) for name in first)


async def test_examples_that_are_kept_back_are_evaluated(home, tmp_path, checkpoint):
    path = data_file(tmp_path, 4)
    options = TuningOptions(rank=2, steps=2, epochs=2, evaluate_every=1, batch_tokens=60)
    async with memory_swarm(home, checkpoint, [Span(0, 6)], **TRAINS) as swarm:
        steps, _ = await tuned(
            swarm.client, checkpoint, path, tmp_path / "out", options, evaluation=path, longest=200
        )
        again, tuner = await tuned(
            swarm.client, checkpoint, path, tmp_path / "out", options, evaluation=path, longest=200
        )
    assert all(step.evaluation is not None and 0 < step.evaluation < 10 for step in steps)
    assert not again  # all of it was done, and what was seen of it is known
    assert list(tuner.evaluations) == [(step.step, step.evaluation) for step in steps]
    assert list(tuner.history) == [(step.step, step.loss) for step in steps]


async def test_losses_that_stay_not_finite_end_it_and_change_nothing(home, tmp_path, checkpoint, monkeypatch):
    async with memory_swarm(home, checkpoint, [Span(0, 6)], **TRAINS) as swarm:
        options = TuningOptions(rank=2, batch_tokens=40, most_bad=3)
        data = TuningData(path=data_file(tmp_path))
        tuner = await open_tuner(swarm.client, str(checkpoint), data, options, tmp_path / "out")
        before = [half.detach().clone() for half in tuner.adapter.parameters]
        honest, losses = tuner._ends.gradients, iter([float("nan")] * 9)
        monkeypatch.setattr(tuner._ends, "gradients", lambda *a: (next(losses), honest(*a)[1]))
        seen = []
        with pytest.raises(StepFailed, match="in 3 steps one after another"):
            async for step in tuner.run():
                seen.append(step.skipped)
        assert seen == [1, 2]
        assert all(torch.equal(a, b) for a, b in zip(before, tuner.adapter.parameters, strict=True))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"attested_only": True}, "attested_only is set"),
        ({"protect": "attested"}, "protect = attested is set"),
        ({"private_ends": "1:0"}, "private_ends is 1:0"),
    ],
)
async def test_settings_that_keep_hidden_states_from_nodes_are_refused_and_not_ignored(tmp_path, given, says):
    # Nothing else is there of the swarm: it is refused before anybody is asked for anything.
    swarm = SimpleNamespace(settings=memory_settings(tmp_path, **given))
    with pytest.raises(UsageError, match=says):
        await open_tuner(swarm, "fish", TuningData(path=tmp_path / "none"), OPTIONS, tmp_path / "out")


async def test_nodes_that_do_not_train_are_not_asked_and_say_no(home, tmp_path, checkpoint, autojump_clock):
    async with memory_swarm(home, checkpoint, [Span(0, 6)], format="fp32", train="off") as swarm:
        assert not swarm.nodes[0].server.trains
        with pytest.raises(NoCoverage, match="nobody who trains"):
            await tuned(swarm.client, checkpoint, data_file(tmp_path), tmp_path / "out", OPTIONS)
    async with memory_swarm(home, checkpoint, [Span(0, 6)], format="int8", train="on") as swarm:
        assert not swarm.nodes[0].server.trains
