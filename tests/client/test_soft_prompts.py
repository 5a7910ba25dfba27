"""Soft prompts: tuned through the blocks of others as PEFT does in one process, and put before prompts."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import trio
from peft import PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.soft_prompts import SoftPrompts
from shoal.client.tuning.tuner import TuningOptions
from shoal.errors import BadWeights, DigestMismatch, PromptTooLong, UnsupportedModel, UsageError
from shoal.models.adapters.read import read_adapter
from shoal.models.adapters.soft_prompt import read_soft_prompt
from shoal.testing.adapters import write_soft_prompt
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Span

from .conftest import PROMPT, THIRDS
from .test_tuning import TRAINS, data_file

FAMILIES = ["gpt2", "gemma3"]
"""With positions that are learnt, and with rows that are scaled."""
ROWS = 5
OPTIONS = TuningOptions(
    method="prompt",
    prompt_tokens=ROWS,
    rate=1e-2,
    warmup=2,
    batch_tokens=120,
    epochs=3,
    steps=4,
    save_every=2,
)


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def of_peft(checkpoint):
    """The model with a soft prompt of PEFT's."""
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=ROWS)
    return get_peft_model(base, config).eval()


def peft_step(model, optimizer, step, number):
    """One step by PEFT and torch in one process, and its loss."""
    optimizer.zero_grad()
    examples = [example for batch in step for example in batch]
    learnt, total = sum(example.answer_tokens for example in examples), 0.0
    for example in examples:
        ids = torch.tensor([example.token_ids])
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0, ROWS + example.learnt - 1 :]
        loss = functional.cross_entropy(logits, ids[0, example.learnt :], reduction="sum") / learnt
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
    for group in optimizer.param_groups:
        group["lr"] = OPTIONS.rate * min(1.0, (number + 1) / OPTIONS.warmup)
    optimizer.step()
    return total


@torch.no_grad()
def greedy(model, prompt, count):
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def saved_prompt(checkpoint, folder, seed=0):
    """A soft prompt in a folder, as PEFT saves it."""
    model = of_peft(checkpoint)
    torch.manual_seed(seed)
    with torch.no_grad():
        model.prompt_encoder["default"].embedding.weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


@pytest.mark.models
@pytest.mark.parametrize("family", FAMILIES)
async def test_it_equals_peft_in_one_process_and_is_asked_as_peft_asks(tmp_path, home, family):
    checkpoint = write_checkpoint(tmp_path / family, family, initializer_range=0.2)
    out = tmp_path / "mine"
    async with memory_swarm(home, checkpoint, THIRDS, **TRAINS, soft_prompt=[str(out)]) as swarm:
        data = TuningData(path=data_file(tmp_path))
        tuner = await open_tuner(swarm.client, str(checkpoint), data, OPTIONS, out)
        model = of_peft(checkpoint)
        weight = model.prompt_encoder["default"].embedding.weight
        with torch.no_grad():
            weight.copy_(tuner.adapter.rows)
        optimizer = torch.optim.AdamW([weight], lr=OPTIONS.rate, weight_decay=0.0)
        steps = [step async for step in tuner.run()]
        expected = [peft_step(model, optimizer, step, n) for n, step in enumerate(tuner._plan)]
        assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)
        assert len(steps) == OPTIONS.steps
        assert torch.allclose(tuner.adapter.rows.detach(), weight.detach(), atol=1e-4)

        saved = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), out
        ).eval()
        answer = swarm.client.generate(f"{checkpoint}:mine", PROMPT, max_tokens=8)
        found = [token async for delta in answer for token in delta.token_ids]
    assert found == greedy(saved, PROMPT, 8)[: len(found)]
    plain = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    assert found != greedy(plain, PROMPT, 8)[: len(found)]


async def test_a_run_that_was_given_up_goes_on_and_blocks_of_ones_own_do_the_same(home, tmp_path, checkpoint):
    data = TuningData(path=data_file(tmp_path))
    async with memory_swarm(home, checkpoint, [Span(0, 6)], **TRAINS) as swarm:

        async def losses(name, stop=0, own=False):
            tuner = await open_tuner(
                swarm.client, str(checkpoint), data, OPTIONS, tmp_path / name, own_blocks=own
            )
            found = []
            async for step in tuner.run():
                found.append(step.loss)
                if step.step == stop:
                    break
            tuner.close()
            return found

        whole = await losses("whole")
        assert await losses("own", own=True) == pytest.approx(whole, rel=1e-5)
        await losses("cut", stop=3)  # one beyond the last checkpoint
        assert await losses("cut") == whole[2:]
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "cut"))
    assert torch.equal(first["prompt_embeddings"], second["prompt_embeddings"])


async def test_sessions_with_and_without_it_are_told_apart_and_go_on(home, tmp_path, checkpoint):
    model = saved_prompt(checkpoint, tmp_path / "soft")
    given = [f"mine={tmp_path / 'soft'}"]
    name = f"{checkpoint}:mine"
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32", soft_prompt=given) as swarm:
        local = await swarm.client.resolve(name)
        bare = await swarm.client.resolve(str(checkpoint))
        assert (local.virtual_tokens, local.shape.context) == (ROWS, bare.shape.context - ROWS)
        async with swarm.client.session(name, tokens=40) as session:
            logits = await session.step(session.prompt_of(PROMPT))
            with torch.no_grad():
                wanted = model(input_ids=torch.tensor([PROMPT]), use_cache=False).logits[0, ROWS:]
            assert torch.allclose(torch.from_numpy(logits), wanted, atol=1e-3)
            assert session.room == 40 - len(PROMPT)
            longer = [*PROMPT, 3, 4, 5]
            assert session.reusable(session.prompt_of(longer)) == ROWS + len(PROMPT)
        answer = swarm.client.generate(name, PROMPT, max_tokens=6, protect="audited", repetition_penalty=1.3)
        async for _ in answer:
            pass
        assert "soft prompt has none" in answer.protection.said[-1]
        refused = pytest.raises(UsageError, match="none are given for an answer with a soft prompt")
        with refused:
            async for _ in swarm.client.generate(name, PROMPT, max_tokens=2, receipts=True):
                pass
        with pytest.raises(UsageError, match="embeddings are of texts alone"):
            await swarm.client.embed(name, "sea")
        with pytest.raises(PromptTooLong):
            async with swarm.client.session(name, tokens=bare.shape.context):
                pass


async def test_the_first_blocks_may_be_the_clients_own(home, tmp_path, checkpoint):
    model = saved_prompt(checkpoint, tmp_path / "mine")
    options = {"format": "fp32", "soft_prompt": [str(tmp_path / "mine")], "private_ends": "1:1"}
    async with memory_swarm(home, checkpoint, [Span(0, 6)], **options) as swarm:
        answer = swarm.client.generate(f"{checkpoint}:mine", PROMPT, max_tokens=5)
        found = [token async for delta in answer for token in delta.token_ids]
    assert found == greedy(model, PROMPT, 5)[: len(found)]


def test_a_folder_that_is_none_is_refused_by_name(tmp_path, checkpoint):
    saved_prompt(checkpoint, tmp_path / "good")
    soft = read_soft_prompt(tmp_path / "good", "mine")
    assert soft.rows.shape == (ROWS, soft.rows.shape[1])
    config = json.loads((tmp_path / "good/adapter_config.json").read_text())

    def changed(**fields):
        folder = tmp_path / "bad"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config | fields))
        save_file({"prompt_embeddings": torch.from_numpy(soft.rows)}, folder / "adapter_model.safetensors")
        return folder

    for fields, error, why in [
        ({"peft_type": "LORA"}, UnsupportedModel, "soft prompts are of the type PROMPT_TUNING"),
        ({"num_virtual_tokens": 4}, BadWeights, "adapter_config.json says"),
        ({"num_virtual_tokens": 4096}, UnsupportedModel, "512 are the most"),
        ({"num_virtual_tokens": "five"}, BadWeights, "no sizes"),
        ({"num_transformer_submodules": 2}, UnsupportedModel, "an encoder and a decoder"),
        ({"modules_to_save": ["head"]}, UnsupportedModel, "modules_to_save"),
        ({"task_type": "SEQ_CLS"}, UnsupportedModel, "not CAUSAL_LM"),
    ]:
        with pytest.raises(error, match=why):
            read_soft_prompt(changed(**fields))
    rows = torch.from_numpy(soft.rows.copy())
    rows[0, 0] = float("nan")
    folder = changed()
    save_file({"prompt_embeddings": rows}, folder / "adapter_model.safetensors")
    with pytest.raises(BadWeights):
        read_soft_prompt(folder)
    save_file({"others": rows}, folder / "adapter_model.safetensors")
    with pytest.raises(UnsupportedModel, match="a soft prompt has prompt_embeddings alone"):
        read_soft_prompt(folder)
    with pytest.raises(UnsupportedModel, match="nodes need nothing"):
        read_adapter(tmp_path / "good")


async def test_one_of_another_model_or_too_long_or_of_a_name_twice_is_refused(home, tmp_path, checkpoint):
    saved_prompt(checkpoint, tmp_path / "mine")
    (tmp_path / "mine/shoal.json").write_text(json.dumps({"base": f"sha256:{'a' * 64}"}))
    async with memory_swarm(home, checkpoint, [], soft_prompt=[str(tmp_path / "mine")]) as swarm:
        soft = read_soft_prompt(tmp_path / "mine")
        local, client = await swarm.client.resolve(str(checkpoint)), swarm.client
        with pytest.raises(DigestMismatch, match="was made for sha256:aaaa"):
            await client.soft_prompts.find(client.rings.finder, local, "mine", within_s=0)
        with pytest.raises(DigestMismatch, match="rows of"):
            replace(soft, base=None).check_model(replace(local.shape, hidden_size=7))
    twice = [str(tmp_path / "mine"), f"mine={tmp_path / 'mine'}"]
    async with memory_swarm(home, checkpoint, [], soft_prompt=twice) as swarm:
        with pytest.raises(UsageError, match="two soft prompts are called mine"):
            await swarm.client.resolve(f"{checkpoint}:mine")


async def test_while_one_is_placed_the_others_are_named(tmp_path, checkpoint):
    soft = read_soft_prompt(write_soft_prompt(tmp_path / "mine", checkpoint))
    loading, loaded = trio.Event(), trio.Event()

    class Thread:
        async def run(self, place):
            loading.set()
            await loaded.wait()
            return soft.rows

    prompts, found = SoftPrompts([str(tmp_path / "mine")], Thread()), []

    async def give():
        found.append(await prompts.given(SimpleNamespace(soft_prompt=soft, digest="sha256:a")))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(give)
            await loading.wait()
            assert await prompts.names() == ["mine"]
            loaded.set()
    assert found[0].rows is soft.rows


def test_options_that_a_soft_prompt_has_no_use_for_are_refused():
    with pytest.raises(UsageError, match="changes no layers"):
        replace(OPTIONS, layers=("q_proj",))
    with pytest.raises(UsageError, match="prompt_tokens is 0"):
        replace(OPTIONS, prompt_tokens=0)
