"""Tuning through node processes: one that is killed in the midst of a step changes nothing of the adapter."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from shoal.client.tuning.open import TuningData, open_tuner
from shoal.client.tuning.tuner import TuningOptions
from shoal.types import Span

from .conftest import processes_of

pytestmark = pytest.mark.swarm
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


def test_a_node_that_is_killed_in_a_step_is_replaced_and_the_adapter_is_the_same(tmp_path, checkpoint):
    data = tmp_path / "data.jsonl"
    lines = [{"prompt": f"Say {i}: ", "completion": "yes " * (i + 1)} for i in range(9)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    spans = [Span(0, 3), Span(3, 6), Span(3, 6)]
    options = {"format": "fp32", "train": "on"}
    with (
        processes_of(tmp_path, str(checkpoint), spans, **options) as nodes,
        nodes.connect() as connected,
    ):
        pids = {node["peer"]: node["pid"] for node in nodes.local.nodes}
        run = (connected.portal, connected.swarm, str(checkpoint), data)
        undisturbed, replaced = tune(*run, tmp_path / "whole")
        assert replaced == 0
        losses, replaced = tune(*run, tmp_path / "killed", lambda peer: os.kill(pids[peer], signal.SIGKILL))
        assert replaced >= 1
    assert losses == pytest.approx(undisturbed, rel=1e-6)
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    for name, half in first.items():
        assert torch.allclose(second[name], half, atol=1e-6), name
