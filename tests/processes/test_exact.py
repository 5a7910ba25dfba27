"""Remote equals local, bitwise in float32: through three processes, for families that differ most."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import ExitStack

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

import shoal
from shoal import config
from shoal.models.gguf.splits import read_gguf
from shoal.models.gguf.through_transformers import convert
from shoal.models.seam.model import cache_argument
from shoal.models.store.store import ModelStore
from shoal.progress import silent
from shoal.testing.checkpoints import write_checkpoint
from tests.models.published import PUBLISHED, publish

from .conftest import processes

pytestmark = pytest.mark.swarm
PROMPT = list(range(5, 36))
STEPS = 20
QUESTION = "Name three fish."


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
        cache = cache_argument(self.model, self.cache)
        return self.model(torch.tensor([tokens]), **cache, use_cache=True).logits[0].numpy()


def check(swarm, whole):
    """Prefill, decode, a chunked prefill and a roll-back give the whole model's logits, bit for bit."""
    with swarm.connect() as connected:
        compare(connected, swarm.model, whole)


def compare(connected, model, whole):
    with connected.session(model, tokens=96) as session:
        expected = whole.step(PROMPT)
        assert np.array_equal(session.step(PROMPT), expected)
        for _ in range(STEPS):
            token = int(expected[-1].argmax())
            expected = whole.step([token])
            assert np.array_equal(session.step([token]), expected)
        before = len(session.token_ids)
        session.step([3, 4, 5])
        session.roll_back(before)
        assert np.array_equal(session.step([6]), whole.step([6]))
        session.roll_back(0)
        whole.restart()
        chunks = np.concatenate([whole.step(PROMPT[i : i + 8]) for i in range(0, len(PROMPT), 8)])
        assert np.array_equal(session.step(PROMPT, chunk=8), chunks)


@pytest.mark.parametrize("family", ["gemma3", "deepseek_v3"])
def test_three_hops_equal_the_whole_model(home, tmp_path, family):
    checkpoint = write_checkpoint(tmp_path / family, family)
    with processes(home, str(checkpoint), 6) as swarm:
        check(swarm, Whole(checkpoint))


def test_three_hops_equal_what_a_quantised_checkpoint_means(home, tmp_path):
    """But for the last bits: its plain tensors begin elsewhere in the file."""
    published, plain = publish(tmp_path, PUBLISHED["gptq4-act"])
    whole = Whole(plain)
    with (
        processes(home, str(published), 6) as swarm,
        swarm.connect() as connected,
        connected.session(swarm.model, tokens=96) as session,
    ):
        for tokens in (PROMPT, [3], [4, 5, 6]):
            np.testing.assert_allclose(session.step(tokens), whole.step(tokens), rtol=1e-4, atol=1e-5)


def test_the_demo_equals_transformers_stays_up_and_takes_its_nodes_along(home, tmp_path):
    """`shoal demo`, as `make demo` starts it: the default model over three nodes that stay up."""
    model = ModelStore(config.load({}, {"SHOAL_HOME": str(home)}).paths.models).resolve(config.DEFAULT_MODEL)
    convert(read_gguf(model.path / "model.gguf"), tmp_path / "whole", silent)  # as transformers reads it
    whole = Whole(tmp_path / "whole")
    for weights in whole.model.parameters():  # the last bit of a product can depend on where they begin
        weights.data = weights.data.clone()
    command = [sys.executable, "-m", "shoal.cli", "demo", "--json", "--max-tokens", "24", "--format", "fp32"]
    command += ["--prompt", QUESTION]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environ = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_THREADS": "1"}
    with ExitStack() as ends:
        demo = ends.enter_context(subprocess.Popen(command, env=environ, text=True, **pipes))
        ends.callback(demo.kill)
        said = json.loads(demo.stdout.readline())
        prompt = torch.tensor([said["prompt_token_ids"]])
        out = whole.model.generate(prompt, max_new_tokens=24, do_sample=False)
        assert said["token_ids"] == out[0, prompt.shape[1] :].tolist()
        hops = [(hop["start"], hop["end"], hop["carrier"]) for hop in said["route"]]
        assert hops == [(0, 10, "direct"), (10, 20, "direct"), (20, 30, "direct")]
        assert said["tokens_per_s"] > 0
        assert said["ttft_s"] > 0
        page = next(line for line in demo.stderr if "in a browser: " in line).split()[-1]
        with urllib.request.urlopen(f"{page}/api/invite", timeout=10) as answer:
            invite = json.load(answer)
        assert invite["here_only"]
        with shoal.connect(invite=invite["code"], host="127.0.0.1", mdns=False) as connected:
            compare(connected, config.DEFAULT_MODEL, whole)
        demo.stdin.write(f"{QUESTION}\n")
        demo.stdin.close()
        assert json.loads(demo.stdout.readline())["token_ids"] == said["token_ids"]
        nodes = psutil.Process(demo.pid).children()
        with urllib.request.urlopen(f"{page}/api/swarm", timeout=10) as answer:
            assert len(json.load(answer)["peers"]) == len([n for n in nodes if "serve" in n.cmdline()]) == 3
        assert demo.poll() is None, "the end of a pipe ends the demo"
        demo.kill()
        _, alive = psutil.wait_procs(nodes, timeout=30)
        assert not alive, "nodes outlive the demo that was killed"
