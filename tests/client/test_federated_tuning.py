"""Federated rounds whose members tune an adapter of a real, small model, and blocks of one's own machine."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import trio
from safetensors.torch import load_file

from shoal.client.federated.look import look_at_run, read_code
from shoal.client.federated.open import FederatedOptions, join_run, resolve_model, start_run
from shoal.client.federated.run_folder import RunFolder
from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import TuningOptions
from shoal.errors import BadWeights, NoCoverage, NotRunning, UnknownModel, UsageError
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.training.federated.outer import SharedState
from shoal.types import Span

DIGEST = "sha256:" + "a" * 64
OPTIONS = TuningOptions(rank=2, rate=5e-3, warmup=1, batch_tokens=200, steps=3)
RUN = FederatedOptions(rounds=2, steps=3)
DEMO = FederatedOptions(rounds=3, compress="demo", kept=64, decay=0.9)


@pytest.fixture(scope="module")
def fish(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("fish"), "llama", initializer_range=0.2)


def data_file(folder, subject):
    path = folder / f"{subject}.jsonl"
    lines = [{"prompt": f"{subject} {i}: ", "completion": f"{subject}{i}"} for i in range(6)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


async def test_own_blocks_give_what_nodes_give(tmp_path, fish):
    data = TuningData(path=data_file(tmp_path, "sea"))
    async with memory_swarm(
        tmp_path / "home", fish, [Span(0, 3), Span(3, 6)], format="fp32", train="on"
    ) as swarm:
        losses = []
        for own in (False, True):
            folder = tmp_path / str(own)
            options = replace(OPTIONS, epochs=3)
            tuner = await open_tuner(swarm.client, str(fish), data, options, folder, own_blocks=own)
            try:
                losses.append([step.loss async for step in tuner.run()])
            finally:
                tuner.close()
    assert len(losses[0]) == 3
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


async def test_members_with_other_data_end_with_one_adapter_that_knows_both(tmp_path, fish):
    """Two runs, one by updates and one by DeMo, in a swarm without any node that trains; somebody looks at
    them from outside.
    """
    async with memory_swarm(tmp_path / "home", fish, [Span(0, 6)], format="int8") as swarm:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for run in (RUN, DEMO):
                    nursery.start_soon(_two_members, swarm, fish, tmp_path / run.compress, run)


async def _two_members(swarm, fish, home, chosen):
    reports, seen, code, looked = {"sea": [], "sky": []}, [], [], []
    begun = trio.Event()
    home.mkdir()

    async def member(subject):
        client = await swarm.add_client()
        data, folder = TuningData(path=data_file(home, subject)), RunFolder(home / subject)
        if subject == "sea":
            opening = start_run(client, str(fish), data, OPTIONS, chosen, folder, own_blocks=True)
        else:
            await begun.wait()
            run = read_code(code[0])
            opening = join_run(client, run, data, OPTIONS, folder, own_blocks=True, look=looked.append)
        async with opening as run:
            code.append(run.code)
            begun.set()
            async for report in run.participant.run():
                reports[subject].append(report)
                if subject == "sky" and report.round == 1:
                    view = await look_at_run(swarm.client.network, read_code(run.code), listen_s=0.2)
                    seen.append(view)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(member, "sea")
        nursery.start_soon(member, "sky")
    assert reports["sea"][-1].digest == reports["sky"][-1].digest
    assert reports["sea"][-1].loss < reports["sea"][0].loss
    assert len(seen[0].cards) == 2
    assert looked == [seen[0].terms], "before it takes part"
    assert seen[0].terms.model == fish.name  # and not where it is at the starter's
    assert (seen[0].terms.rounds, seen[0].terms.compress) == (chosen.rounds, chosen.compress)
    adapters = [load_file(home / name / "adapter/adapter_model.safetensors") for name in reports]
    for name, half in adapters[0].items():
        assert (adapters[1][name] == half).all(), name
    assert any(bool(half.abs().max() > 0) for name, half in adapters[0].items() if "lora_B" in name)
    assert (home / "sky/own-momentum.safetensors").exists() == (chosen.compress == "demo")


@pytest.mark.parametrize(
    ("here", "named", "found"),
    [
        ({DIGEST: "by another name", "fish": "another fish"}, "", DIGEST),
        ({"fish": "from a catalogue"}, "", "fish"),
        ({"peers": "from peers"}, "", DIGEST),
        ({"mine": "a copy"}, "mine", "mine"),
        ({"peers": "from peers"}, "mine", None),
        ({}, "", None),
    ],
)
async def test_a_run_s_model_is_found_by_its_digest_or_by_its_name(here, named, found):
    async def resolve(name):
        if name in here or (name == DIGEST and "peers" in here):
            return here.get(name) or here["peers"]
        raise NoCoverage("nobody gives it") if name == DIGEST else UnknownModel(f"there is no {name}")

    swarm = SimpleNamespace(store=SimpleNamespace(find=here.get), resolve=resolve)
    run = SimpleNamespace(model="fish", digest=DIGEST)
    if found is None:
        with pytest.raises(UnknownModel, match=named or "fish"):
            await resolve_model(swarm, run, named)
    else:
        assert (await resolve_model(swarm, run, named))[0] == found


def test_the_folder_keeps_what_a_member_goes_on_from(tmp_path):
    folder = RunFolder(tmp_path / "run")
    assert folder.state(3) is None
    assert folder.identity().peer == folder.identity().peer
    state = SharedState(np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32))
    folder.keep_state(7, state)
    kept = folder.state(3)
    assert kept is not None
    assert (kept[0], kept[1].digest) == (7, state.digest)
    with pytest.raises(BadWeights, match="is damaged"):
        folder.state(4)
    (folder.path / "shared.safetensors").write_bytes(b"nothing")
    with pytest.raises(BadWeights, match="is damaged"):
        folder.state(3)
    assert folder.momentum(3) is None
    folder.keep_momentum(np.array([1, 2, 3], np.float32))
    assert folder.momentum(3).tolist() == [1, 2, 3]
    with pytest.raises(BadWeights, match="is damaged"):
        folder.momentum(4)
    folder.keep_terms(b"terms")
    folder.keep_terms(b"terms")
    with pytest.raises(UsageError, match="belongs to another run"):
        folder.keep_terms(b"others")


def test_a_code_that_is_none_is_refused():
    with pytest.raises(UsageError, match="no code of a run"):
        read_code("fish")


async def test_a_run_that_nobody_takes_part_in_is_not_found(tmp_path, fish, autojump_clock):
    async with memory_swarm(tmp_path / "home", fish, []) as swarm:
        with pytest.raises(NotRunning, match="nobody who takes part"):
            await look_at_run(swarm.client.network, b"r" * 32)


def test_one_process_at_a_time_takes_part_from_a_folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    refused = pytest.raises(UsageError, match="another process takes part")
    with folder.held(), refused, RunFolder(folder.path).held():
        pass
    with RunFolder(folder.path).held():
        pass
