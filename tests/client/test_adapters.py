"""Sessions of a model with an adapter: what PEFT gives, whoever shares the hops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import trio
from peft import PeftModel
from transformers import AutoModelForCausalLM

from shoal.client.rollouts.run import RolloutOptions
from shoal.client.rollouts.samples import read_samples
from shoal.client.sampling import Sampling
from shoal.errors import NoCoverage, UnknownModel, UsageError
from shoal.testing.adapters import write_adapter
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

from .conftest import PROMPT, THIRDS, Whole, memory_swarm

LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FAMILIES = {
    "llama": (LLAMA, False),
    "gemma3": (LLAMA, False),
    "gpt2": (["c_attn", "c_proj", "c_fc"], True),
}


class WithPeft(Whole):
    """The whole model with an adapter, by PEFT."""

    def __init__(self, folder, adapter):
        super().__init__(folder)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # PEFT's wrapper does not say what its forward takes; its layers are in the model.
        self.model = PeftModel.from_pretrained(base, adapter).get_base_model().eval()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(folder / "pirate", checkpoint, LLAMA, seed=1),
        write_adapter(folder / "poet", checkpoint, ["q_proj", "down_proj"], seed=2, rank=8, use_rslora=True),
    ]


@pytest.mark.models
@pytest.mark.parametrize("family", FAMILIES)
async def test_each_family_gives_the_bits_that_peft_gives(tmp_path, family):
    layers, turned = FAMILIES[family]
    folder = write_checkpoint(tmp_path / family, family)
    adapter = write_adapter(tmp_path / "tuned", folder, layers, turned=turned)
    peft, without = WithPeft(folder, adapter), Whole(folder)
    async with (
        memory_swarm(tmp_path / "home", folder, THIRDS, format="fp32", adapter=[str(adapter)]) as swarm,
        swarm.client.session(f"{folder}:tuned", tokens=64) as session,
    ):
        expected = peft.step(PROMPT)
        assert not np.allclose(expected, without.step(PROMPT), atol=0.1)
        assert np.array_equal(await session.step(PROMPT), expected)
        for _ in range(6):
            token = int(expected[-1].argmax())
            expected = peft.step([token])
            assert np.array_equal(await session.step([token]), expected)


async def test_sessions_with_other_adapters_and_with_none_share_the_hops(home, checkpoint, adapters):
    expected = {
        "": Whole(checkpoint).greedy(PROMPT, 12),
        ":pirate": WithPeft(checkpoint, adapters[0]).greedy(PROMPT, 12),
        ":poet": WithPeft(checkpoint, adapters[1]).greedy(PROMPT, 12),
    }
    assert len({tuple(tokens) for tokens in expected.values()}) == 3
    found: dict[str, list[int]] = {}

    async def ask(client, name):
        answer = client.generate(f"{checkpoint}{name}", PROMPT, max_tokens=12, stop=())
        found[name] = [token async for delta in answer for token in delta.token_ids]

    both = [str(path) for path in adapters]
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32", adapter=both) as swarm:
        async with trio.open_nursery() as nursery:
            for name in expected:
                nursery.start_soon(ask, swarm.client, name)
        digest = swarm.nodes[0].adapters[0].digest[7:19]
        await ask(swarm.client, f":{digest}")
    assert found[f":{digest}"] == expected[":pirate"]
    assert {name: found[name] for name in expected} == expected


async def test_a_hop_that_is_lost_is_replaced_by_one_that_has_the_adapter(home, checkpoint, adapters):
    peft = WithPeft(checkpoint, adapters[0]).greedy(PROMPT, 10)
    with_it = {"adapter": [str(adapters[0])]}
    async with memory_swarm(home, checkpoint, THIRDS, format="fp32", **with_it) as swarm:
        await swarm.add_node(Span(2, 3))  # without it: of no use to this session
        other = await swarm.add_node(Span(2, 3), **with_it)
        async with swarm.client.session(f"{checkpoint}:pirate", tokens=64) as session:
            chosen = [int((await session.step(PROMPT))[-1].argmax())]
            middle = session.ring.route[1].address.peer
            swarm.kill(next(i for i, n in enumerate(swarm.networks) if n.peer == middle))
            while len(chosen) < 10:
                chosen.append(int((await session.step(chosen[-1:]))[-1].argmax()))
            peers = {hop.address.peer for hop in session.ring.route}
        assert middle not in peers
        assert {swarm.networks[1].peer, other.member.network.peer} & peers
    assert chosen == peft


async def test_an_adapter_that_is_not_served_or_is_everywhere_but_at_some_blocks_is_told(
    home, checkpoint, adapters, autojump_clock
):
    async with memory_swarm(home, checkpoint, [Span(0, 3)], adapter=[str(adapters[0])]) as swarm:
        await swarm.add_node(Span(3, 6))
        with pytest.raises(UnknownModel, match="the adapter poet: there is pirate"):
            await swarm.client.resolve(f"{checkpoint}:poet")
        with pytest.raises(NoCoverage) as found:
            async with swarm.client.session(f"{checkpoint}:pirate"):
                pass
        assert found.value.missing == (Span(3, 6),)


async def test_two_adapters_of_one_name_are_told_apart_by_their_digests(home, checkpoint, adapters):
    async with memory_swarm(home, checkpoint, [], adapter=[]) as swarm:
        for path in adapters:
            await swarm.add_node(Span(0, 6), adapter=[f"mine={path}"])
        with pytest.raises(UsageError, match="2 adapters called mine") as error:
            await swarm.client.resolve(f"{checkpoint}:mine")
        named = error.value.check.rpartition(":")[2]
        found = await swarm.client.resolve(f"{checkpoint}:{named}")
        assert found.shape.adapter in {node.adapters[0].digest for node in swarm.nodes}


async def test_samples_of_an_adapter_name_it_by_its_digest(home, tmp_path, checkpoint, adapters):
    options = RolloutOptions(samples=2, max_tokens=6, sampling=Sampling())
    pirate = [str(adapters[0])]
    async with memory_swarm(home, checkpoint, [Span(0, 6)], format="fp32", adapter=pirate) as swarm:
        prompts, out = [{"token_ids": PROMPT}], tmp_path / "out.jsonl"
        await swarm.client.rollouts(f"{checkpoint}:pirate", prompts, out, options=options)
        digest = swarm.nodes[0].adapters[0].digest
        with pytest.raises(UsageError, match="sample of another run: adapter differ"):
            await swarm.client.rollouts(str(checkpoint), prompts, out, options=options)
    expected = WithPeft(checkpoint, adapters[0]).greedy(PROMPT, 6)
    assert [(one.adapter, one.token_ids) for _, one in read_samples(out)] == [(digest, expected)] * 2


async def test_what_an_adapter_has_not_is_refused(home, checkpoint, adapters):
    async with memory_swarm(home, checkpoint, THIRDS, adapter=[str(adapters[0])]) as swarm:
        name = f"{checkpoint}:pirate"
        private = await swarm.add_client(private_ends="1:1")
        with pytest.raises(UsageError, match="an adapter is where its nodes are"):
            async with private.session(name):
                pass
        with pytest.raises(UsageError, match="receipts name a model and no adapter"):
            async for _ in swarm.client.generate(name, PROMPT, max_tokens=2, receipts=True):
                pass
        audited = swarm.client.generate(name, PROMPT, max_tokens=2, protect="audited")
        async for _ in audited:
            pass
        assert (audited.protection.asked, audited.protection.level) == ("audited", "fast")
        assert "an answer with an adapter has none" in audited.protection.faults[0]
