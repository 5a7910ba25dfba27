"""Remote equals local, bitwise in float32: through three processes, for families that differ most."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from shoal import config
from shoal.models.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint

from .conftest import processes

pytestmark = pytest.mark.swarm
PROMPT = list(range(5, 36))
STEPS = 20


class Whole:
    """The model in one piece, in transformers, with the threads that the nodes have."""

    def __init__(self, path):
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.restart()

    def restart(self):
        self.cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def step(self, tokens):
        return self.model(torch.tensor([tokens]), past_key_values=self.cache, use_cache=True).logits[0]


def check(swarm, whole):
    """Prefill, decode, a chunked prefill and a roll-back give the whole model's logits, bit for bit."""
    with swarm.connect() as connected, connected.session(swarm.model, tokens=96) as session:
        expected = whole.step(PROMPT)
        assert torch.equal(session.step(PROMPT), expected)
        for _ in range(STEPS):
            token = int(expected[-1].argmax())
            expected = whole.step([token])
            assert torch.equal(session.step([token]), expected)
        before = len(session.token_ids)
        session.step([3, 4, 5])
        session.roll_back(before)
        assert torch.equal(session.step([6]), whole.step([6]))
        session.roll_back(0)
        whole.restart()
        chunks = torch.cat([whole.step(PROMPT[i : i + 8]) for i in range(0, len(PROMPT), 8)])
        assert torch.equal(session.step(PROMPT, chunk=8), chunks)


@pytest.mark.parametrize("family", ["llama", "gemma3", "deepseek_v3"])
def test_three_hops_equal_the_whole_model(home, tmp_path, family):
    checkpoint = write_checkpoint(tmp_path / family, family)
    with processes(home, str(checkpoint), 6) as swarm:
        check(swarm, Whole(checkpoint))


def test_the_default_model_and_the_demo_equal_transformers(home):
    store = ModelStore(config.load({}, {"SHOAL_HOME": str(home)}).paths.models)
    model = store.resolve(config.DEFAULT_MODEL)
    whole = Whole(model.path)
    with processes(home, config.DEFAULT_MODEL, model.shape.n_blocks) as swarm:
        check(swarm, whole)
    env = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_THREADS": "1"}
    command = [sys.executable, "-m", "shoal.cli", "demo", "--once", "--json", "--max-tokens", "24"]
    ran = subprocess.run(
        [*command, "--prompt", "Name three fish."],
        env=env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said = json.loads(ran.stdout)
    out = whole.model.generate(torch.tensor([said["prompt_token_ids"]]), max_new_tokens=24, do_sample=False)
    assert said["token_ids"] == out[0, len(said["prompt_token_ids"]) :].tolist()
    assert [(hop["start"], hop["end"], hop["carrier"]) for hop in said["route"]] == [
        (0, 10, "direct"),
        (10, 20, "direct"),
        (20, 30, "direct"),
    ]
    assert said["tokens_per_s"] > 0
    assert said["ttft_s"] > 0
