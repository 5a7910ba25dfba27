"""Spans and ends of the model's own modules: exact, any family, one session after another.

This is where the executor's arrays become torch's tensors and back, sharing their memory; nothing else of
what runs a model on our kernels imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import NoReturn, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from shoal.errors import NotAllowed, ShoalError, StepFailed, UnsupportedModel
from shoal.executor.adapters.modules import ModuleAdapter
from shoal.executor.adapters.parts import AdapterNumbers
from shoal.executor.arrays import Floats
from shoal.executor.batcher import ForwardOutput
from shoal.executor.cores import usable_cores
from shoal.executor.device.device import CPU
from shoal.executor.device.products import find_products
from shoal.executor.device.torch_devices import shortage, too_small
from shoal.executor.kernels.c_kernels import ThreadTeam, library
from shoal.executor.packed import load_packed
from shoal.executor.pages import PagePool, Pages, pages_for
from shoal.executor.runner import UNPROVABLE, Capabilities, KvState, SessionRows
from shoal.executor.training.train import TrainingRun, TrainingWork, check_trainable
from shoal.models.adapters.adapter import Adapter
from shoal.models.build.ends import EndsModule
from shoal.models.build.kv import Cache
from shoal.models.build.load import load_ends_module
from shoal.models.build.seq2seq.ends import AudioSource, TargetEnds, TextSource
from shoal.models.build.span import SpanModule
from shoal.models.checkpoint.mrope import Grids
from shoal.models.checkpoint.multimodal import Stretches
from shoal.models.store.local_model import LocalModel
from shoal.types import AdapterDigest, Exactness, Format, Kernels, Kv, Span

NOT_ALONE = "its blocks are not all a decoder's, in one process"
KV_PROBE = 1024
"""Tokens over which a model's own cache is measured: windows and states grow less than by the token."""


class Modules(Protocol):
    """What a :class:`~shoal.models.build.span.SpanModule` is to a runner. Each method is described there."""

    span: Span
    width: int
    dtype: torch.dtype
    device: torch.device
    tensor_bytes: int
    stateless: bool
    boundary: int
    list_name: str

    @property
    def rolls_back(self) -> bool: ...
    def layer(self, block: int, name: str) -> torch.nn.Module | None: ...
    def forward(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int = 0,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor: ...
    def new_cache(self) -> Cache: ...
    def kv_bytes(self, tokens: int) -> int: ...
    def part(self, span: Span) -> Modules: ...


class ModuleRunner:
    """A span of the model's own modules."""

    def __init__(self, module: Modules, *, exact: bool, bits: Exactness = "modules") -> None:
        self.module = module
        self.bits: Exactness = bits
        self.capabilities = Capabilities(
            batch=False,
            roll_back=module.rolls_back,
            exact=exact,
            stateless=module.stateless,
            untrainable=check_trainable(module) if isinstance(module, SpanModule) else NOT_ALONE,
            boundary=module.boundary,
        )
        self.span = module.span
        self.width = module.width
        self.tensor_bytes = module.tensor_bytes
        self.kv_bytes = module.kv_bytes(KV_PROBE) / KV_PROBE
        self._numbers = AdapterNumbers()
        self._adapters: Sequence[Adapter] = ()
        self._adapted: WeakKeyDictionary[Modules, dict[int, ModuleAdapter]] = WeakKeyDictionary()

    def train(self, span: Span, work: TrainingWork) -> TrainingRun:
        """As :meth:`Runner.train`."""
        module = self.module.part(span)
        if self.capabilities.untrainable or not isinstance(module, SpanModule):
            raise NotAllowed(f"this node does not train: {self.capabilities.untrainable}")
        return TrainingRun(module, work)

    def load_adapters(self, adapters: Sequence[Adapter]) -> None:
        """As :meth:`Runner.load_adapters`."""
        if adapters and (self.module.stateless or not self.module.list_name):
            raise UnsupportedModel(
                "adapters are for decoders whose layers are in one process, and this span is none",
                check="serve it without --adapter, or without --parallel",
            )
        self._adapters = adapters
        self._numbers.take(adapters)
        self.tensor_bytes += sum(adapter.span_bytes(self.span) for adapter in adapters)
        for number in range(1, len(adapters) + 1):
            self._applied(self.module, number)  # so that one that does not fit is found now

    def make_pool(self, tokens: int) -> PagePool:
        """Pages that are only counted: the model's own code keeps the KV."""
        return PagePool(pages_for(tokens))

    def open(self, span: Span, pages: Pages, adapter: AdapterDigest | None = None) -> KvState:
        """Raises ``UsageError`` when ``span`` is not inside of this one, or the adapter not here."""
        number = self._numbers.of(adapter)
        return KvState(span, pages, cache=self.module.part(span).new_cache(), adapter=number)

    def decode_steps(self) -> None:
        return None

    def tracer(self) -> NoReturn:
        raise NotAllowed(UNPROVABLE)

    def forward(self, batch: Sequence[SessionRows]) -> list[ForwardOutput]:
        return [self._step(rows) for rows in batch]

    def watched(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()  # nobody else computes

    def _step(self, rows: SessionRows) -> ForwardOutput:
        module, cache = self.module.part(rows.state.span), rows.state.cache
        if cache is None:
            return StepFailed("a state that another runner has made")
        try:
            # The model keeps the KV where it likes; what was promised to the session bounds it all the same.
            rows.state.pages.resize(rows.position + len(rows.hidden))
            hidden = _tensor(rows.hidden, module.dtype)
            with self._applied(module, rows.state.adapter):
                told = rows.sequence_length, rows.mutual, rows.grids
                out = module.forward(hidden, cache, rows.position, *told)
        except ShoalError as error:
            return error
        except Exception as error:  # noqa: BLE001
            # What a model's own code may raise is listed nowhere. It ends this step, never the node.
            if (busy := shortage(error, str(module.device))) is not None:
                return busy
            return StepFailed(f"the forward failed: {type(error).__name__}: {error}")
        rows.state.length = cache.length
        return _array(out)

    def _applied(self, module: Modules, number: int) -> AbstractContextManager[None]:
        """While the block runs, ``module`` has an adapter. Raises DigestMismatch: it does not fit."""
        if not number:
            return nullcontext()
        made = self._adapted.setdefault(module, {})
        if number not in made:
            made[number] = ModuleAdapter(self._adapters[number - 1], module)
        return made[number].applied()


class ModuleEnds:
    """The embedding and the head as the model's own modules."""

    sliced = False
    bits: Exactness = "modules"

    def __init__(self, ends: EndsModule) -> None:
        self._ends = ends
        self.tensor_bytes = ends.tensor_bytes
        self.stateless = ends.stateless
        self.rope_scaling = ends.rope_scaling
        source = ends.source if isinstance(ends, TargetEnds) else None
        self.encoder = None if source is None else ModuleSource(source)

    def embed(self, token_ids: Sequence[int], position: int) -> Floats:
        return _array(self._ends.embed(token_ids, position))

    def heads(self, batch: Sequence[Floats]) -> list[ForwardOutput]:
        return [self._head(hidden) for hidden in batch]

    def decode_steps(self) -> None:
        return None

    def last_hidden(self, hidden: Floats) -> ForwardOutput:
        return self._behind_blocks(self._ends.last_hidden, hidden)

    def _head(self, hidden: Floats) -> ForwardOutput:
        return self._behind_blocks(self._ends.head, hidden)

    def _behind_blocks(
        self, compute: Callable[[torch.Tensor], torch.Tensor], hidden: Floats
    ) -> ForwardOutput:
        try:
            return _array(compute(_tensor(hidden, self._ends.dtype)))
        except ShoalError as error:
            return error
        except RuntimeError as error:
            if (busy := shortage(error, str(self._ends.device))) is None:
                raise
            return busy


class ModuleSource(ModuleEnds):
    """What is before and behind the blocks of an encoder that has a decoder behind it."""

    def __init__(self, ends: TextSource | AudioSource) -> None:
        super().__init__(ends)
        self._source = ends

    def hear(self, features: Floats) -> Floats:
        return _array(self._source.hear(torch.from_numpy(features)[None]))


def load_modules(
    model: LocalModel,
    span: Span,
    format: Format,
    *,
    kv: Kv,
    threads: int,
    device: str = CPU,
    kernels: Kernels = "auto",
) -> ModuleRunner:
    """Build ``span`` of a model of any family, its linear layers in ``format``.

    Arguments and errors are those of :func:`shoal.executor.load.load_runner`.
    """
    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    by_torch = device != CPU or kernels == "torch"
    team = None if by_torch or format == "fp32" or library() is None else ThreadTeam(threads)
    products = find_products(torch.device(device)) if by_torch else None
    try:
        module = load_packed(model, span, format, team=team, kv=kv, device=device, products=products)
    except RuntimeError as error:
        raise too_small(error, torch.device(device), f"blocks {span} in {format}") from error
    exact = format == "fp32" and device == CPU
    return ModuleRunner(module, exact=exact, bits="torch" if by_torch else "modules")


def load_module_ends(model: LocalModel, device: str = CPU) -> ModuleEnds:
    """Build the embedding and the head of a model of any family."""
    return ModuleEnds(load_ends_module(model, device=device))


def _tensor(hidden: Floats, dtype: torch.dtype) -> torch.Tensor:
    """``[1, n, width]``, always a copy: the last bit of a product can depend on where its rows begin."""
    return torch.from_numpy(hidden)[None].to(dtype, copy=True)


def _array(out: torch.Tensor) -> Floats:
    """float32 ``[n, …]`` of a batch of one."""
    return np.ascontiguousarray(out[0].float().cpu().numpy())
