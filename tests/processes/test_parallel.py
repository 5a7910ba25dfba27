"""Nodes that compute their span in two processes each: the whole model's tokens, and nobody left behind."""

from __future__ import annotations

import time

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from shoal.testing.checkpoints import write_checkpoint

from .conftest import processes

pytestmark = pytest.mark.swarm
PROMPT = list(range(5, 25))


def test_two_nodes_of_two_processes(home, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "llama", "llama")
    whole = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    tokens = torch.tensor([PROMPT])
    expected = whole.generate(tokens, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=2)
    with processes(home, str(checkpoint), 6, nodes=2, format="fp32", threads=2, parallel=2) as swarm:
        first, second = (psutil.Process(node["pid"]) for node in swarm.local.nodes)
        (beside_first,), (beside_second,) = first.children(), second.children()
        with swarm.connect() as connected:
            answer = connected.generate(swarm.model, PROMPT, max_tokens=12)
            assert len(list(answer)) == len(answer.answer.token_ids)
        assert answer.answer.token_ids == expected[0, len(PROMPT) :].tolist()
        beside_first.kill()
        assert ends(first), "a node goes on without one of its processes"
        second.kill()
        assert ends(beside_second), "a process outlives its node"


def ends(process, within_s=30.0):
    """Whether a process comes to its end."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False
