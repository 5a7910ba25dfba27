"""Two hundred answers at once through three node processes: each is its own, and nothing is left of them."""

from __future__ import annotations

import json

import httpx
import psutil
import pytest
import trio

from shoal.client.scores import log_softmax

from .conftest import Served

pytestmark = [pytest.mark.swarm, pytest.mark.alone]
STREAMS = 200
TOKENS = 8
END = 2
GROWS_AT_MOST = 1.1
"""Times the memory that a process had after a wave as large."""


Prompt = tuple[int, ...]


def prompts(wave: int) -> list[Prompt]:
    """Token ids, no two alike."""
    return [(40, wave, number + 5) for number in range(STREAMS)]


def references(served: Served, asked: list[Prompt]) -> dict[Prompt, list[float]]:
    """How likely the model in one process finds the tokens of its answer: no two answers are alike."""
    model, found = served.one_process(), dict[Prompt, list[float]]()
    for prompt in asked:
        tokens = model.greedy(prompt, TOKENS)
        model.restart()
        scores = log_softmax(model.step([*prompt, *tokens[:-1]])[len(prompt) - 1 :])
        row = [float(scores[place, token]) for place, token in enumerate(tokens)]
        found[prompt] = row[: tokens.index(END) + 1] if END in tokens else row
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


async def test_two_hundred_streams_are_neither_lost_nor_mixed_up_and_leave_no_memory(served: Served) -> None:
    found = await all_at_once(served, prompts(1))
    for prompt, expected in references(served, prompts(1)).items():
        assert found[prompt] == pytest.approx(expected, abs=1e-4), prompt
    assert len({tuple(scores) for scores in found.values()}) == STREAMS
    before = memory(served)
    assert len(await all_at_once(served, prompts(2))) == STREAMS
    after = memory(served)
    assert len(after) == 4
    for pid, held in after.items():
        assert held < GROWS_AT_MOST * before[pid]
    async with httpx.AsyncClient(base_url=served.url) as client:
        figures = (await client.get("/metrics")).text
    assert "num_requests_running 0.0" in figures
