"""One process's part of a span that several compute: the same code in the node and in those that it starts.

Run as a program, it is one of those: orders come in on stdin, answers go out on stdout, and when stdin ends,
so does it.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from datetime import timedelta
from typing import BinaryIO, cast

import torch
import torch.distributed as dist

from shoal.errors import ShoalError, StepFailed, UsageError
from shoal.executor.parallel import messages
from shoal.executor.parallel.messages import (
    Begin,
    CheckAlone,
    Drop,
    Meet,
    OrderDone,
    OrderFailed,
    PreparePart,
    RankAnswer,
    RankOrder,
    RunStep,
)
from shoal.executor.parallel.numa import stay_beside
from shoal.models.build.kv import Cache
from shoal.models.build.load import build_span_module
from shoal.models.build.tensor_split import INSTEAD


def device_of(rank: int, ranks: int, device: str) -> torch.device:
    """Where a rank computes: on the CPU, or each on a GPU of its own, of the kind of ``device``.

    Raises:
        UsageError: there are not as many GPUs, or they cannot work together.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.device("cpu")
    if kind != "cuda" or torch.cuda.device_count() < ranks:
        raise UsageError(
            f"{ranks} processes need as many CUDA devices, and this machine has "
            f"{torch.accelerator.device_count()} of type {kind}",
            check=INSTEAD,
            next_command="shoal serve MODEL --parallel 1",
        )
    return torch.device("cuda", rank)


class Shard:
    """A rank's part of a span. All ranks do the same, in the same order. For one thread at a time."""

    def __init__(self, begin: Begin, rank: int) -> None:
        """Meet the others and load. What is raised here is the end of the rank.

        Raises:
            As ``build_span_module``; RuntimeError when the others do not come.
        """
        self.device = device_of(rank, begin.ranks, begin.device)
        if self.device.type == "cpu":
            stay_beside(rank, begin.ranks)
        _meet_others(begin, rank, self.device)
        self.whole = build_span_module(
            begin.model, begin.span, begin.dtype, str(self.device), kv_as=begin.kv, split=begin.ranks
        )

    def check(self) -> None:
        """Prove that the span stands alone. Raises ``UnsupportedModel``."""
        self.whole.prove()

    def meet(self) -> None:
        """Return when all ranks are here. Raises ``RuntimeError`` when they do not come."""
        dist.barrier()

    def step(self, order: RunStep, cache: Cache, hidden: torch.Tensor | None) -> torch.Tensor:
        """Run tokens through some of the blocks, together with the other ranks.

        Args:
            cache: this rank's of the session.
            hidden: ``[1, tokens, width]`` in the span's dtype, in rank 0; the others get it from there.

        Raises:
            As ``SpanModule.forward``; RuntimeError also when another rank does not come along.
        """
        module = self.whole.part(order.span)  # first, in all ranks: to make it takes collectives of its own
        if hidden is None:
            hidden = torch.empty((1, order.tokens, module.width), dtype=module.dtype)
        hidden = hidden.to(self.device).contiguous()
        dist.broadcast(hidden, 0)
        told = order.sequence_length, order.mutual, order.grids
        return module.forward(hidden, cache, order.position, *told)


def _meet_others(begin: Begin, rank: int, device: torch.device) -> None:
    deadline = timedelta(seconds=begin.deadline_s)
    store = dist.FileStore(begin.store, begin.ranks)  # pyright: ignore[reportPrivateImportUsage]
    store.set_timeout(deadline)
    bound = device if device.type == "cuda" else None
    backend = "gloo" if bound is None else "nccl"
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=begin.ranks, timeout=deadline, device_id=bound
    )


class Follower:
    """A rank that the node has started: obeys until nobody gives orders any more."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.shard: Shard | None = None
        self.caches: dict[int, Cache] = {}

    def obey(self, order: RankOrder) -> RankAnswer:
        """Do it, and say what became of it."""
        try:
            return self._do(order)
        except ShoalError as error:
            return OrderFailed(error.code, error.message)
        except Exception as error:  # noqa: BLE001
            # What a model's own code may raise is listed nowhere; whether it ends the group, rank 0 decides.
            return OrderFailed(StepFailed.code, f"{type(error).__name__}: {error}")

    def _do(self, order: RankOrder) -> OrderDone:
        if isinstance(order, Begin):
            torch.set_num_threads(order.threads)
            self.shard = Shard(order, self.rank)
            return OrderDone(self.shard.whole.tensor_bytes)
        if self.shard is None:
            raise StepFailed("an order before the first")
        match order:
            case CheckAlone():
                self.shard.check()
            case Meet():
                self.shard.meet()
            case PreparePart():
                self.shard.whole.part(order.span)
            case RunStep():
                self.shard.step(order, self._cache(self.shard, order), None)
            case Drop():
                self.caches.pop(order.cache, None)
        return OrderDone()

    def _cache(self, shard: Shard, order: RunStep) -> Cache:
        if order.cache not in self.caches:
            self.caches[order.cache] = shard.whole.part(order.span).new_cache()
        return self.caches[order.cache]


def main() -> None:
    """Follow, until stdin ends."""
    answers = _take_stdout()
    follower = Follower(int(sys.argv[1]))
    answers.write(messages.write(OrderDone()))
    with suppress(BrokenPipeError):  # nobody listens any more: stdin has ended too
        for line in sys.stdin.buffer:
            order = messages.read_order(line)
            answer = follower.obey(order)
            if not isinstance(order, Drop):
                answers.write(messages.write(answer))
    os._exit(0)  # torch would tidy up for seconds, or wait for those who are gone


def _take_stdout() -> BinaryIO:
    """Stdout for our answers alone: what a library prints goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    return cast(BinaryIO, answers)


if __name__ == "__main__":
    main()
