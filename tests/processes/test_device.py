"""`shoal serve --device`: a whole route by torch, as on an accelerator; and a device that is not here."""

from __future__ import annotations

import os
import subprocess
import sys

import anyio
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from .conftest import processes

pytestmark = pytest.mark.swarm
TOKENS = 24


@pytest.fixture(scope="module")
def by_torch(home, checkpoint):
    """Two nodes that serve on the CPU by torch."""
    with processes(home, str(checkpoint), 6, nodes=2, format="fp32", device="cpu", kernels="torch") as swarm:
        yield swarm


@pytest.fixture(scope="module")
def whole(checkpoint):
    """The model in one piece, in transformers."""
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def greedy(whole, prompt):
    """Its likeliest tokens."""
    out = whole.generate(
        torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    return out[0, len(prompt) :].tolist()


def decoded(swarm, model, prompt):
    """The likeliest tokens of a session over the route, and all logits on the way."""
    tokens, logits = [], []
    with swarm.session(model, tokens=96) as session:
        step = prompt
        for _ in range(TOKENS):
            logits.append(session.step(step)[-1])
            tokens.append(int(logits[-1].argmax()))
            step = tokens[-1:]
    return tokens, np.stack(logits)


def test_the_tokens_are_the_whole_models_with_eight_sessions_at_once(by_torch, whole):
    prompts = [[3 + n, *range(20, 30 + 5 * n)] for n in range(8)]
    with by_torch.connect(device="cpu", kernels="torch") as swarm:
        found = {}

        async def ask(n):
            found[n] = await anyio.to_thread.run_sync(decoded, swarm, by_torch.model, prompts[n])

        async def ask_all():
            async with anyio.create_task_group() as group:
                for n in range(len(prompts)):
                    group.start_soon(ask, n)

        anyio.run(ask_all)
    for n, prompt in enumerate(prompts):
        tokens, logits = found[n]
        assert tokens == greedy(whole, prompt)
        with torch.inference_mode():
            expected = whole(torch.tensor([prompt + tokens[:-1]])).logits[0, len(prompt) - 1 :].numpy()
        assert np.linalg.norm(logits - expected) / np.linalg.norm(expected) < 1e-5


def test_a_device_that_is_not_here_is_named_with_what_is(home, checkpoint):
    asked = subprocess.run(
        [sys.executable, "-m", "shoal.cli", "serve", str(checkpoint), "--device", "cuda:7", "--no-mdns"],
        env={**os.environ, "SHOAL_HOME": str(home / "alone"), "SHOAL_HOST": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert asked.returncode == 2
    assert "this machine has no device cuda:7 that can be used" in asked.stderr
    assert "cpu" in asked.stderr
    assert "shoal doctor" in asked.stderr
