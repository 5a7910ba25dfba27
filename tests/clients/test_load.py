"""Two hundred answers at once through three node processes: each is its own, and nothing is left of them."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import psutil
import pytest
import torch
import trio
from transformers import AutoModelForCausalLM

from .conftest import Served

pytestmark = [pytest.mark.swarm, pytest.mark.alone]
STREAMS = 200
TOKENS = 8
GROWS_AT_MOST = 1.1
"""Times the memory that a process had after a wave as large."""


Prompt = tuple[int, ...]


def prompts(wave: int) -> list[Prompt]:
    """Token ids, no two alike."""
    return [(40, wave, number + 5) for number in range(STREAMS)]


def references(checkpoint: Path, asked: list[Prompt]) -> dict[Prompt, list[float]]:
    """How likely the whole model finds the tokens of its answer: no two answers are alike."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    ids = torch.tensor(asked)
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS, do_sample=False)
    chosen = whole[:, ids.shape[1] :]
    with torch.inference_mode():
        scores = model(whole).logits[:, ids.shape[1] - 1 : -1].log_softmax(-1)
    likely = scores.gather(2, chosen[:, :, None])[:, :, 0]
    end = model.generation_config.eos_token_id
    found: dict[Prompt, list[float]] = {}
    for prompt, tokens, row in zip(asked, chosen.tolist(), likely.tolist(), strict=True):
        found[prompt] = row[: tokens.index(end) + 1] if end in tokens else row
    return found


async def streamed(client: httpx.AsyncClient, model: str, prompt: Prompt) -> list[float]:
    """How likely the tokens of an answer were, put together from its chunks."""
    body = {"model": model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "logprobs": 0}
    answer = await client.post("/v1/completions", json=body | {"stream": True})
    assert answer.status_code == 200, answer.text
    *chunks, done = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert done == "[DONE]"
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    return [score for choice in choices for score in (choice["logprobs"] or {}).get("token_logprobs", ())]


async def all_at_once(served: Served, asked: list[Prompt]) -> dict[Prompt, list[float]]:
    found: dict[Prompt, list[float]] = {}

    async def one(prompt: Prompt) -> None:
        found[prompt] = await streamed(client, served.model, prompt)

    limits = httpx.Limits(max_connections=STREAMS)
    async with (
        httpx.AsyncClient(base_url=served.url, timeout=120, limits=limits) as client,
        trio.open_nursery() as nursery,
    ):
        for prompt in asked:
            nursery.start_soon(one, prompt)
    return found


def memory(served: Served) -> dict[int, int]:
    """Resident bytes of the gateway and of each node."""
    pids = [served.pid, *(int(node["pid"]) for node in served.swarm.local.nodes)]
    return {pid: psutil.Process(pid).memory_info().rss for pid in pids}


async def test_two_hundred_streams_are_neither_lost_nor_mixed_up_and_leave_no_memory(exact: Served) -> None:
    found = await all_at_once(exact, prompts(1))
    for prompt, expected in references(exact.checkpoint, prompts(1)).items():
        assert found[prompt] == pytest.approx(expected, abs=1e-4), prompt
    assert len({tuple(scores) for scores in found.values()}) == STREAMS
    before = memory(exact)
    assert len(await all_at_once(exact, prompts(2))) == STREAMS
    after = memory(exact)
    assert len(after) == 4
    for pid, held in after.items():
        assert held < GROWS_AT_MOST * before[pid]
    async with httpx.AsyncClient(base_url=exact.url) as client:
        figures = (await client.get("/metrics")).text
    assert "num_requests_running 0.0" in figures
