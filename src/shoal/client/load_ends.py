"""Loads what a client computes itself: the ends of a model, and the blocks that it keeps to itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from shoal.config import Settings
from shoal.errors import OutOfResources
from shoal.executor.device.device import Device, memory_budget
from shoal.executor.device.find import find_device
from shoal.executor.ends import EndsEngine
from shoal.executor.engine import Engine
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.runner import Runner
from shoal.executor.thread import ComputeThread
from shoal.models.store.local_model import LocalModel
from shoal.routing.route import routed_span
from shoal.types import Format

KEPT_ITEM = 4
"""Bytes of an element of what the first blocks gave, which a session keeps."""


async def load_ends(
    local: LocalModel, format: Format, settings: Settings, thread: ComputeThread
) -> EndsEngine:
    """The ends of a model and the client's own blocks, in the format of the hops, on ``thread``.

    Raises:
        UsageError: the device that the settings name is not here, or no block would be left to the swarm.
        BadWeights, UnsupportedModel: they cannot be loaded.
        OutOfResources: there is no memory for the blocks and their KV.
    """
    return await thread.run(partial(_load, local, format, settings, thread))


def _load(local: LocalModel, format: Format, settings: Settings, thread: ComputeThread) -> EndsEngine:
    own, n_blocks = settings.own_blocks, local.shape.n_blocks
    routed = routed_span(own, n_blocks)
    device = find_device(settings.device).device
    budget = memory_budget(settings, device)
    ends = load_ends_runner(
        local,
        format,
        threads=settings.threads,
        cache=settings.paths.cache,
        device=device.name,
        kernels=settings.kernels,
    )
    runners = {
        span.start: load_runner(
            local,
            span,
            format,
            kv=settings.kv,
            threads=settings.threads,
            cache=settings.paths.cache,
            device=device.name,
            kernels=settings.kernels,
        )
        for span in own.spans(n_blocks)
    }
    tokens = _kv_tokens(list(runners.values()), settings, budget, device) if runners else 0
    engines = {
        start: Engine(runner, runner.make_pool(tokens), thread, format=format, kv=settings.kv)
        for start, runner in runners.items()
    }
    first = engines.get(0) if own.first else None
    return EndsEngine(ends, thread, first, engines.get(routed.end))


def _kv_tokens(own: Sequence[Runner], settings: Settings, budget: int, device: Device) -> int:
    """Tokens for which all sessions together have room in the client's own blocks."""
    weights = sum(runner.tensor_bytes for runner in own)
    per_token = sum(runner.kv_bytes for runner in own) + KEPT_ITEM * own[0].width
    tokens = min(settings.kv_tokens, int((budget - weights) // per_token))
    if tokens < 1:
        raise OutOfResources(
            f"the client's own blocks take {weights >> 20} MiB of {budget >> 20} MiB on {device}, "
            "and nothing is left for KV",
            check="keep fewer blocks, or set memory to more",
        )
    return tokens
