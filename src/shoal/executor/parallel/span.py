"""One span computed by several processes of this machine, each on its GPU or its share of the cores.

Attention heads and the rows or columns of the large matrices are shared out by the family's own plan
(:mod:`shoal.models.build.tensor_split`); the keys and values with the heads. A forward runs in all
processes at once, and they add up their parts twice in each block. To an engine it is a span like another.
"""

from __future__ import annotations

import itertools
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import trio

from shoal import process_environ
from shoal.errors import PositionGap, StepFailed, UsageError
from shoal.executor.cores import usable_cores
from shoal.executor.device.device import CPU
from shoal.executor.modules import ModuleRunner
from shoal.executor.parallel.messages import Begin, CheckAlone, Meet, PreparePart, RankOrder, RunStep
from shoal.executor.parallel.ranks import GRACE_S, Ranks
from shoal.executor.parallel.shard import Shard, device_of
from shoal.models.build.kv import Cache
from shoal.models.build.skeleton import read_model_config
from shoal.models.build.span import PARTS, SpanModule
from shoal.models.build.tensor_split import INSTEAD, check_split
from shoal.models.build.tensors import check_hidden
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.mrope import Grids
from shoal.models.checkpoint.multimodal import Stretches
from shoal.models.store.local_model import LocalModel
from shoal.types import DType, Format, Kv, Span

STEP_S = 60.0
"""For one collective, and for the others' answers to a step: who is later is lost."""
LOAD_S = 600.0
"""How much longer than ours the loading of the others' parts may take."""
DTYPES: dict[Format, DType] = {"fp32": "float32", "bf16": "bfloat16"}

_ResultT = TypeVar("_ResultT")


@dataclass
class SharedCache(Cache):
    """Rank 0's part of one session's cache; the others know theirs by its number."""

    number: int = 0


class ParallelSpan:
    """Blocks ``[start, end)`` of a model in several processes. For one thread at a time, but for closing.

    It has what :class:`~shoal.models.build.span.SpanModule` has, and gives the same but for the order in
    which sums are added up. Every method that computes raises ``StepFailed`` once a process is lost.
    """

    boundary = 0

    def __init__(self, team: RankTeam, module: SpanModule) -> None:
        self.span = module.span
        self.list_name = ""  # no layer is here as a whole
        self.stateless = module.stateless
        self.width = module.width
        self.dtype = module.dtype
        self.device = module.device
        self.tensor_bytes = sum(team.weights)
        """Bytes of the span's weights, in all processes together."""
        self.rank_bytes = tuple(team.weights)
        """The same, by process."""
        self.team = team
        self._module = module
        self._parts: OrderedDict[Span, ParallelSpan] = OrderedDict()

    def layer(self, block: int, name: str) -> None:
        """Nothing that an adapter could change."""

    def forward(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int = 0,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        """As :meth:`SpanModule.forward`. Raises ``StepFailed`` also when a process does not come along."""
        check_hidden(hidden, self.width, self.dtype)
        self._module.check_told(mutual, grids)
        if not isinstance(cache, SharedCache):
            raise StepFailed("a cache that another span has made")
        if position > cache.length:
            raise PositionGap(f"a step at position {position}, but only {cache.length} tokens are cached")
        if position < cache.length or cache.torn:
            self.crop(cache, position)  # what is refused here the others never hear of
        told = sequence_length, mutual, grids
        order = RunStep(self.span, cache.number, position, hidden.shape[1], *told)
        return self.team.run(order, partial(self.team.shard.step, order, cache, hidden))

    def new_cache(self) -> SharedCache:
        """An empty cache for one session. When it is garbage here, the others forget theirs."""
        cache = SharedCache(self._module.new_cache().states, number=next(self.team.numbers))
        weakref.finalize(cache, self.team.ranks.drop, cache.number).atexit = False
        return cache

    def crop(self, cache: Cache, length: int) -> None:
        """As :meth:`SpanModule.crop`. The others follow with the next step, from its position."""
        self._module.crop(cache, length)

    @property
    def rolls_back(self) -> bool:
        """As :attr:`SpanModule.rolls_back`."""
        return self._module.rolls_back

    def cache_length(self, cache: Cache) -> int:
        """Tokens that the cache holds."""
        return cache.length

    def kv_bytes(self, tokens: int) -> int:
        """Bytes of cache that a session of ``tokens`` tokens takes, in all processes together."""
        return self.team.ranks.count * self._module.kv_bytes(tokens)

    def part(self, span: Span) -> ParallelSpan:
        """As :meth:`SpanModule.part`."""
        if span == self.span:
            return self
        if span.start < self.span.start or span.end > self.span.end:
            raise UsageError(f"blocks {span} are not inside of {self.span}")
        if span not in self._parts:
            make = partial(self.team.shard.whole.part, span)
            self._parts[span] = ParallelSpan(self.team, self.team.run(PreparePart(span), make))
        self._parts.move_to_end(span)
        while len(self._parts) > PARTS:
            self._parts.popitem(last=False)
        return self._parts[span]

    def wait_lost(self) -> str | None:
        """Wait until a process is lost, and say how; or until the span is closed. From any thread."""
        return self.team.ranks.wait_over()

    def close(self) -> None:
        """End the other processes. From any thread; a forward that is running then fails."""
        self.team.close()


class RankTeam:
    """All ranks of a span, ours included, which holds our part of the weights."""

    def __init__(self, ranks: Ranks, shard: Shard, weights: list[int]) -> None:
        self.ranks = ranks
        self.shard = shard
        self.weights = weights
        """Bytes, by rank."""
        self.numbers = itertools.count(1)

    def run(self, order: RankOrder, ours: Callable[[], _ResultT]) -> _ResultT:
        """Have all ranks do their part of a step. Raises what ``ours`` does, and ``StepFailed``."""
        try:
            return self.ranks.together(order, ours, STEP_S)[0]
        except Exception:
            if self.ranks.lost is None:
                self._meet()
            raise

    def close(self) -> None:
        self.ranks.close()
        _leave_group()

    def _meet(self) -> None:
        """All have failed: by the same cause, if they are still at the same place."""
        try:
            self.ranks.together(Meet(), self.shard.meet, GRACE_S)
        except Exception as error:
            raise self.ranks.lose(f"after a failed step the processes did not meet: {error}") from error


def load_parallel(
    model: LocalModel,
    span: Span,
    format: Format,
    *,
    kv: Kv = "auto",
    ranks: int,
    threads: int = 0,
    device: str = CPU,
    deadline_s: float = STEP_S,
) -> ParallelSpan:
    """Build ``span`` of a model in ``ranks`` processes: ours is the first, the others are started.

    Each reads its own part of the tensors. A process can be part of one such span at a time, which its caller
    must close.

    Args:
        kv: how sessions' keys and values are kept.
        threads: of all processes together; 0 takes as many as there are cores.
        device: the CPU, or a kind of GPU of which each process takes one.
        deadline_s: for one collective.

    Raises:
        UsageError: the format, the model's heads or this machine's GPUs do not allow it; the span goes beyond
            the model's blocks.
        UnsupportedModel: transformers has no plan to split the family; or as ``load_span_module``.
        BadWeights: tensors are missing, damaged or of another shape.
        StepFailed: a process did not start, or was lost.
    """
    check_split(read_model_config(open_checkpoint(model.path)), ranks)
    device_of(0, ranks, device)
    if dist.is_initialized():
        raise UsageError(
            "this process is part of another span already", check="run each such span in a process of its own"
        )
    if format not in DTYPES:
        raise UsageError(
            f"a span over {ranks} processes cannot be held in {format}",
            check=f"choose one of {', '.join(DTYPES)}; or {INSTEAD}",
            next_command="shoal serve MODEL --parallel 1",
        )
    process_environ.keep_collectives_inside()
    each = max(1, (threads or usable_cores()) // ranks)
    torch.set_num_threads(each)
    with tempfile.TemporaryDirectory(prefix="shoal-") as folder:
        meeting = str(Path(folder) / "ranks")
        begin = Begin(ranks, meeting, deadline_s, each, model, span, DTYPES[format], kv, device)
        others = Ranks(ranks)
        try:
            team = _load(begin, others)
        except BaseException:
            others.close()
            _leave_group()
            raise
    return ParallelSpan(team, team.shard.whole)


class ParallelRunner(ModuleRunner):
    """A span over several processes as a runner."""

    def __init__(self, module: ParallelSpan) -> None:
        super().__init__(module, exact=False, bits="ranks")  # sums of parts are added up in another order
        self._parallel = module

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, self._parallel)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):  # not for long: who does not end is killed
                await trio.to_thread.run_sync(self._parallel.close)


def load_ranks(
    model: LocalModel, span: Span, format: Format, *, kv: Kv, ranks: int, threads: int, device: str = CPU
) -> ParallelRunner:
    """A runner of what :func:`load_parallel` builds; its arguments and errors are the same."""
    built = load_parallel(model, span, format, kv=kv, ranks=ranks, threads=threads, device=device)
    return ParallelRunner(built)


async def _watch(span: ParallelSpan) -> None:
    if (reason := await trio.to_thread.run_sync(span.wait_lost, abandon_on_cancel=True)) is not None:
        raise StepFailed(reason, check="check this machine's memory and the node's log")


def _load(begin: Begin, others: Ranks) -> RankTeam:
    others.wait_started()
    shard, loaded = others.together(begin, lambda: Shard(begin, 0), LOAD_S)
    others.together(CheckAlone(), shard.check, STEP_S)
    return RankTeam(others, shard, [shard.whole.tensor_bytes, *(done.weights for done in loaded)])


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
