"""Samples and tuning through node processes: what is killed, a node or the client, changes nothing."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shoal.client.rollouts.run import RolloutOptions
from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import TuningOptions
from shoal.swarm import membership
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

from .conftest import processes_of
from .test_talk import command

pytestmark = pytest.mark.swarm
EXAMPLES = Path(__file__).parents[2] / "examples"
OPTIONS = TuningOptions(rank=4, rate=1e-3, warmup=1, batch_tokens=90, steps=3)


def tune(portal, swarm, model, data, folder, kill=None):
    """The losses of a run, and how many hops were replaced; ``kill`` is told of the last hop in step 2."""

    async def run():
        tuner = await open_tuner(swarm, model, TuningData(path=data), OPTIONS, folder)
        backward, losses = tuner._blocks.backward, []

        async def dying(passed, gradients):
            if kill is not None and len(losses) == 1 and not tuner._blocks.replaced:
                kill(tuner._blocks.route[-1].address.peer)
            return await backward(passed, gradients)

        tuner._blocks.backward = dying
        try:
            async for step in tuner.run():
                losses.append(step.loss)
        finally:
            tuner.close()
        return losses, tuner._blocks.replaced

    return portal.call(run)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """Three that train, of which two have the same blocks."""
    home = tmp_path_factory.mktemp("nodes")
    checkpoint = write_checkpoint(home / "fish", "llama")
    spans = [Span(0, 3), Span(3, 6), Span(3, 6)]
    with processes_of(home, str(checkpoint), spans, format="fp32", train="on") as booted:
        membership.save(home / "swarms", booted.local.membership)
        yield booted


def test_samples_go_on_after_the_client_is_killed_and_none_is_lost_or_there_twice(nodes, tmp_path):
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Say {i}"}) + "\n" for i in range(4)))
    given = f"rollouts {nodes.model} --prompts {prompts} --out {out} -n 8 --max-tokens 24 --at-once 3"
    argv, environ = command(nodes, *given.split())
    with subprocess.Popen(argv, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        until = time.monotonic() + 60
        while not out.exists() or out.read_bytes().count(b"\n") < 5:
            assert first.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        first.kill()
    before = out.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert 5 <= whole.count(b"\n") < 32
    out.write_bytes(whole + b'{"prompt":4,"sam')  # as a kill may leave it
    with nodes.connect() as connected:
        options = RolloutOptions(samples=8, max_tokens=24, at_once=3)  # what the command was told
        assert connected.rollouts(nodes.model, prompts, out, options=options).made == 32
    lines = out.read_bytes().splitlines(keepends=True)
    assert b"".join(lines).startswith(whole)
    made = sorted((one["prompt"], one["sample"]) for one in map(json.loads, lines))
    assert made == [(line, number) for line in range(1, 5) for number in range(8)]


@pytest.fixture
def example(nodes, monkeypatch, capsys):
    """Runs an example as a reader would, and gives the lines that it prints."""
    swarm = nodes.local.membership.name
    for name, value in {"HOME": nodes.home, "HOST": "127.0.0.1", "MDNS": "0", "SWARM": swarm}.items():
        monkeypatch.setenv(f"SHOAL_{name}", str(value))

    def run(name, *argv):
        monkeypatch.setattr(sys, "argv", [name, nodes.model, *map(str, argv)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_reinforcement_learning_raises_the_reward(example, tmp_path):
    steps = 20
    lines = example("grpo.py", steps, tmp_path / "adapter")
    rewards = [float(line.rsplit(" ", 1)[1]) for line in lines]
    assert len(rewards) == steps
    first, last = sum(rewards[:4]) / 4, sum(rewards[-4:]) / 4
    assert last > first + 0.15, rewards
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()


def test_an_adapter_is_tuned_and_asked(example, tmp_path):
    *steps, sky, _, _, coal = example("tune_lora.py", 18, tmp_path / "colours")
    assert len(steps) == 18
    assert (sky, coal) == ("sky: blue", "coal: black")


def test_a_soft_prompt_is_tuned_and_stands_before_a_question(example, tmp_path):
    *steps, answer = example("soft_prompt.py", 6, tmp_path / "polite")
    losses = [float(line.rsplit(" ", 1)[1]) for line in steps]
    assert losses[-1] < losses[0]
    assert answer.startswith("Where is the station?")


def test_samples_are_made_and_read(example, tmp_path):
    said, *samples = example("rollouts.py", 2, tmp_path / "samples.jsonl")
    assert said.startswith("4 samples in ")
    assert sorted(line.split(":")[0] for line in samples) == ["sea 0", "sea 1", "shoal 0", "shoal 1"]


def test_members_of_a_federated_run_end_with_the_same_adapter(example, tmp_path):
    lines = example("federated.py", 2, tmp_path / "members", 2)
    last = [line for line in lines if "round 2, 2 members" in line]
    assert len(last) == 2
    assert len({line.rsplit(" ", 1)[1] for line in last}) == 1, last


def test_a_model_is_trained_from_scratch_by_demo(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo_training.py", "20", "2"])
    runpy.run_path(str(EXAMPLES / "demo_training.py"), run_name="__main__")
    first, *_, last = capsys.readouterr().out.splitlines()
    before, after = (
        float(first.rsplit(" ", 1)[1]),
        {float(loss) for loss in last.split("loss ")[1].split(", ")},
    )
    assert len(after) == 1, "all members have the same model"
    assert after.pop() < before - 0.01


def test_a_node_that_is_killed_in_a_step_is_replaced_and_the_adapter_is_the_same(nodes, tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [{"prompt": f"Say {i}: ", "completion": "yes " * (i + 1)} for i in range(9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with nodes.connect() as connected:
        pids = {node["peer"]: node["pid"] for node in nodes.local.nodes}
        run = (connected.portal, connected.swarm, nodes.model, data)
        undisturbed, replaced = tune(*run, tmp_path / "whole")
        assert replaced == 0
        losses, replaced = tune(*run, tmp_path / "killed", lambda peer: os.kill(pids[peer], signal.SIGKILL))
        assert replaced >= 1
    assert losses == pytest.approx(undisturbed, rel=1e-6)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    for name, half in first.items():
        assert torch.allclose(second[name], half, atol=1e-6), name
