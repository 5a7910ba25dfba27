"""How much a swarm costs: decoding through node processes here, over the same model in one process.

Both run in turns, so that what else the machine does falls on both alike; the ratio is of the medians.
"""

from __future__ import annotations

import statistics
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from shoal.cli.demonstration import entered
from shoal.cli.inside import wanted_dtype
from shoal.cli.local import local_swarm
from shoal.cli.progress import working
from shoal.config import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from shoal.client.swarm import Swarm
    from shoal.models.local import LocalModel

PROMPT = tuple(range(100, 132))
"""32 token ids; what they say does not matter to the clock."""
ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Bench:
    """What is compared, and how long."""

    nodes: int
    tokens: int


async def overhead(settings: Settings, bench: Bench) -> dict[str, Any]:
    """Measure, and return the numbers as ``--json`` shows them; speeds are in decoded tokens per second.

    Raises:
        ShoalError: the model cannot be had, or a node did not come up.
    """
    async with AsyncExitStack() as stack:
        with working(f"getting {settings.model}") as report:
            from shoal.models.store import ModelStore

            store = ModelStore(settings.paths.models)
            model = await trio.to_thread.run_sync(store.resolve, settings.model, report)
        with working(f"starting {bench.nodes} nodes"):
            local = await stack.enter_async_context(local_swarm(settings, model.shape.n_blocks, bench.nodes))
            swarm = await stack.enter_async_context(entered(local))
        with working("measuring") as report:
            whole = await trio.to_thread.run_sync(partial(load_whole, model, settings))
            alone: list[float] = []
            together: list[float] = []
            tokens: list[list[int]] = []
            for number in range(ROUNDS):
                report("measuring", 2 * number, 2 * ROUNDS)
                speed, chosen = await trio.to_thread.run_sync(decode_alone, whole, bench.tokens)
                alone.append(speed)
                tokens.append(chosen)
                report("measuring", 2 * number + 1, 2 * ROUNDS)
                speed, chosen = await decode_through(swarm, settings, bench.tokens)
                together.append(speed)
                tokens.append(chosen)
    return {
        "model": model.name,
        "dtype": settings.dtype,
        "nodes": bench.nodes,
        "threads": settings.threads,
        "tokens": bench.tokens,
        "one_process_tokens_per_s": round(statistics.median(alone), 3),
        "swarm_tokens_per_s": round(statistics.median(together), 3),
        "ratio": round(statistics.median(together) / statistics.median(alone), 4),
        "rounds": [{"one_process": a, "swarm": t} for a, t in zip(alone, together, strict=True)],
        "same_tokens": all(chosen == tokens[0] for chosen in tokens),
    }


def load_whole(model: LocalModel, settings: Settings) -> PreTrainedModel:
    """The whole model as transformers loads it, with the threads that a node would take."""
    import torch
    from transformers import AutoModelForCausalLM

    if settings.threads:
        torch.set_num_threads(settings.threads)
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return AutoModelForCausalLM.from_pretrained(model.path, dtype=dtype, local_files_only=True).eval()


def decode_alone(model: PreTrainedModel, count: int) -> tuple[float, list[int]]:
    """Decode greedily in this process; the speed, and the tokens."""
    import torch

    chosen: list[int] = []
    with torch.inference_mode():
        out: Any = model(torch.tensor([PROMPT]), use_cache=True, logits_to_keep=1)
        began = time.perf_counter()
        for _ in range(count):
            chosen.append(int(out.logits[0, -1].argmax()))
            out = model(torch.tensor([chosen[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        elapsed = time.perf_counter() - began
    return round(count / elapsed, 3), chosen


async def decode_through(swarm: Swarm, settings: Settings, count: int) -> tuple[float, list[int]]:
    """Decode greedily through the swarm; the speed, and the tokens."""
    from shoal.client.sampling import Sampler, Sampling

    sampler = Sampler(Sampling())
    chosen: list[int] = []
    dtype = wanted_dtype(settings.dtype)
    async with swarm.session(settings.model, tokens=len(PROMPT) + count, dtype=dtype) as session:
        advanced = await session.advance(PROMPT, sampler)
        began = time.perf_counter()
        for _ in range(count):
            chosen.append(advanced.token)
            advanced = await session.advance(chosen[-1:], sampler)
        elapsed = time.perf_counter() - began
    return round(count / elapsed, 3), chosen
