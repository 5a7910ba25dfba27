"""Nodes that choose their format by themselves agree on one, so that a route can go over all of them."""

from __future__ import annotations

import psutil
import pytest
import torch

from shoal.executor.device.runner import DeviceRunner
from shoal.executor.kernels.built import kernels_built
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import memory_swarm
from shoal.types import Format, Span

LEFT, RIGHT = Span(0, 3), Span(3, 6)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.set_num_threads(1)
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.mark.parametrize("format", ["fp32", "bf16", "w8a8", "int4"])
async def test_a_node_takes_the_format_that_the_swarm_serves(tmp_path, checkpoint, format: Format):
    async with memory_swarm(tmp_path / "home", checkpoint, [LEFT], format=format) as swarm:
        node = await swarm.add_node(RIGHT, format="auto")
        assert node.engine.format == format
        answer = swarm.client.generate(str(checkpoint), [5, 6, 7], max_tokens=2, format=format)
        assert len([delta async for delta in answer]) > 0


@pytest.mark.skipif(not kernels_built(), reason="the C kernels are not built")
async def test_the_first_node_takes_int8_where_the_kernels_are_built(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, [LEFT], format="auto") as swarm:
        assert swarm.nodes[0].engine.format == "int8"


async def test_a_node_computes_on_the_device_and_with_the_kernels_that_it_is_told(tmp_path, checkpoint):
    async with memory_swarm(tmp_path / "home", checkpoint, [LEFT], format="int8") as swarm:
        node = await swarm.add_node(RIGHT, format="int8", device="cpu", kernels="torch")
        assert isinstance(node.engine.runner, DeviceRunner)
        assert (node.served().device, node.served().device_memory) == ("cpu", psutil.virtual_memory().total)
        answer = swarm.client.generate(str(checkpoint), [5, 6, 7], max_tokens=2, format="int8")
        assert len([delta async for delta in answer]) > 0


async def test_another_version_of_the_model_does_not_decide(tmp_path, checkpoint):
    other = write_checkpoint(tmp_path / "other", "llama", seed=7)
    async with memory_swarm(tmp_path / "home", checkpoint, [LEFT], format="int4") as swarm:
        model = ModelStore(swarm.settings.paths.models).resolve(str(other))
        node = await swarm.add_node(RIGHT, model, format="auto")
        assert node.engine.format == ("int8" if kernels_built() else "fp32")
