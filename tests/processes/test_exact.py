"""Remote equals local, bitwise, through node processes: in float32 the whole model in transformers, by the
kernels the model in one process."""

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
from shoal.models.seam.model import cache_argument
from shoal.testing.checkpoints import write_checkpoint
from tests.one_process import OneProcess

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


def compare(connected, model, whole):
    """Prefill, decode, a chunked prefill and a roll-back give the whole model's logits, bit for bit."""
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


def test_hops_of_a_models_own_modules_equal_the_whole_model(home, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "deepseek", "deepseek_v3")  # the least like Llama
    with processes(home, str(checkpoint), 6, nodes=2, format="fp32") as swarm, swarm.connect() as connected:
        compare(connected, swarm.model, Whole(checkpoint))


def test_three_hops_on_the_kernels_equal_one_process(swarm, one_process):
    one_process.restart()
    with swarm.connect() as connected:
        compare(connected, swarm.model, one_process)


def test_the_demo_equals_one_process_stays_up_and_takes_its_nodes_along(home):
    """`shoal demo`, as `make demo` starts it: the default model over three nodes that stay up."""
    command = [sys.executable, "-m", "shoal.cli", "demo", "--json", "--max-tokens", "24"]
    command += ["--prompt", QUESTION]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    environ = {**os.environ, "SHOAL_HOME": str(home), "SHOAL_THREADS": "1", "SHOAL_WIRE": "float32"}
    with ExitStack() as ends:
        demo = ends.enter_context(subprocess.Popen(command, env=environ, text=True, **pipes))
        ends.callback(demo.kill)
        said = json.loads(demo.stdout.readline())
        hops = [(hop["start"], hop["end"], hop["carrier"]) for hop in said["route"]]
        assert hops == [(0, 10, "direct"), (10, 20, "direct"), (20, 30, "direct")]
        assert said["tokens_per_s"] > 0
        assert said["ttft_s"] > 0
        page = next(line for line in demo.stderr if "in a browser: " in line).split()[-1]
        with urllib.request.urlopen(f"{page}/api/invite", timeout=10) as answer:
            invite = json.load(answer)
        assert invite["here_only"]
        with shoal.connect(invite=invite["code"], host="127.0.0.1", mdns=False, wire="float32") as connected:
            (format,) = {one.served.format for one in connected.announcements()}
            whole = OneProcess(home, config.DEFAULT_MODEL, format)
            assert said["token_ids"] == whole.greedy(said["prompt_token_ids"], 24)
            whole.restart()
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
