"""How much a swarm costs: decoding through node processes here, over the same model in one process.

Both decode in turns, a few tokens each, so that what else the machine does falls on both alike.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import trio

from shoal.client.sampling import Sampler, Sampling
from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.executor.device.device import CPU
from shoal.executor.load import span_shape
from shoal.local.processes import enter_local_swarm, local_swarm
from shoal.models.build.loader import load_weights
from shoal.models.build.skeleton import causal_class, read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.seam.cache import DynamicCache
from shoal.models.seam.model import PreTrainedModel, cache_argument
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.progress import Progress
from shoal.routing.formats import choose_format
from shoal.types import DType, Format, Span

PROMPT = tuple(range(100, 132))
"""32 token ids; what they say does not matter to the clock."""
SLICE = 8
"""Tokens that each decodes before it is the other's turn."""


@dataclass(frozen=True, slots=True)
class OverheadBench:
    """What is compared, and how long."""

    nodes: int
    tokens: int


async def measure_overhead(settings: Settings, bench: OverheadBench, progress: Progress) -> dict[str, Any]:
    """Measure, and return the numbers as ``--json`` shows them; speeds are in decoded tokens per second.

    Raises:
        ShoalError: the model cannot be had, or a node did not come up.
    """
    store = ModelStore(settings.paths.models)
    model = await trio.to_thread.run_sync(store.resolve, settings.model, progress)
    shaped = await trio.to_thread.run_sync(_has_kernels, model)
    format = compared_format(settings.format, model.dtype, shaped=shaped)
    # On an accelerator nodes would run what transformers runs here.
    settings = replace(settings, format=format, device=CPU, kernels="auto")
    dtype = _dtype(format)
    async with AsyncExitStack() as stack:
        local = await stack.enter_async_context(local_swarm(settings, model.shape.n_blocks, bench.nodes))
        swarm = await stack.enter_async_context(enter_local_swarm(local))
        alone = await trio.to_thread.run_sync(LocalDecoder.load, model, dtype, settings.threads)
        through = await stack.enter_async_context(session_through(swarm, settings, bench.tokens))
        await trio.to_thread.run_sync(alone.decode, SLICE)  # both warm up, unmeasured
        await through.decode(SLICE)
        apart_s, together_s = [0.0], [0.0]
        for done in range(0, bench.tokens, SLICE):
            progress("measuring", done, bench.tokens)
            apart_s.append(await trio.to_thread.run_sync(alone.decode, SLICE))
            together_s.append(await through.decode(SLICE))
    count = SLICE * (len(apart_s) - 1)
    return {
        "model": model.name,
        "format": settings.format,
        "nodes": bench.nodes,
        "threads": settings.threads,
        "tokens": count,
        "one_process_tokens_per_s": round(count / sum(apart_s), 3),
        "swarm_tokens_per_s": round(count / sum(together_s), 3),
        "ratio": round(sum(apart_s) / sum(together_s), 4),
        "same_tokens": alone.tokens == through.tokens,
    }


class LocalDecoder:
    """The whole model as transformers runs it, in this process, with the threads that a node would take."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._cache = DynamicCache(config=model.config)
        self._out = self._forward(list(PROMPT))
        self.tokens: list[int] = []

    @classmethod
    def load(cls, model: LocalModel, dtype: DType, threads: int) -> LocalDecoder:
        """Load the model and run the prompt."""
        if threads:
            torch.set_num_threads(threads)
        checkpoint = open_checkpoint(model.path)
        config = read_model_config(checkpoint)
        return cls(load_weights(causal_class(config), checkpoint, config, dtype))

    def decode(self, count: int) -> float:
        """Decode ``count`` tokens greedily; the seconds that it took."""
        began = time.perf_counter()
        for _ in range(count):
            self.tokens.append(int(self._out.logits[0, -1].argmax()))
            self._out = self._forward(self.tokens[-1:])
        return time.perf_counter() - began

    def _forward(self, token_ids: list[int]) -> Any:
        with torch.inference_mode():
            ids = torch.tensor([token_ids])
            cache = cache_argument(self._model, self._cache)
            return self._model(ids, **cache, use_cache=True, logits_to_keep=1)


class SessionDecoder:
    """The same through a session of the swarm."""

    def __init__(self, session: Session, sampler: Sampler, token: int) -> None:
        self._session = session
        self._sampler = sampler
        self._next = token
        self.tokens: list[int] = []

    async def decode(self, count: int) -> float:
        """Decode ``count`` tokens greedily; the seconds that it took."""
        began = time.perf_counter()
        for _ in range(count):
            self.tokens.append(self._next)
            self._next = (await self._session.advance(self.tokens[-1:], self._sampler)).token
        return time.perf_counter() - began


@asynccontextmanager
async def session_through(swarm: Swarm, settings: Settings, count: int) -> AsyncGenerator[SessionDecoder]:
    """A session with room for ``count`` tokens after the prompt, which has been run."""
    sampler = Sampler(Sampling())
    room = len(PROMPT) + count + 3 * SLICE
    async with swarm.session(settings.model, tokens=room, format=settings.asked_format) as session:
        first = await session.advance(PROMPT, sampler)
        yield SessionDecoder(session, sampler, first.token)


def compared_format(asked: Format | Literal["auto"], dtype: str, *, shaped: bool) -> Format:
    """The format in which nodes run what transformers runs: the model's own modules.

    Args:
        dtype: of the checkpoint.
        shaped: whether nodes have products of their own for it, in every format but fp32.

    Raises:
        UsageError: in the one that is asked for they do not.
    """
    if not shaped:
        return choose_format(asked, dtype, kernels=False).format
    if asked == "bf16":
        raise UsageError(
            "nodes run this model in bf16 by products of their own, which transformers does not have: their "
            "speeds do not tell what a swarm costs",
            check="choose --format fp32, or compare with one process of ours",
            next_command="shoal bench swarm --format bf16",
        )
    return "fp32" if asked == "auto" else asked


def _has_kernels(model: LocalModel) -> bool:
    checkpoint = open_checkpoint(model.path)
    return span_shape(checkpoint, Span(0, model.shape.n_blocks)) is not None


def _dtype(format: str) -> DType:
    """What transformers itself computes in.

    Raises:
        UsageError: it has no such format.
    """
    dtypes: dict[str, DType] = {"fp32": "float32", "bf16": "bfloat16"}
    if format not in dtypes:
        raise UsageError(
            f"transformers does not run {format} by itself, so there is nothing to compare with",
            check="choose --format fp32 or bf16",
            next_command=f"shoal bench swarm --format {format}",
        )
    return dtypes[format]
