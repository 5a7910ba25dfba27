"""Forward and backward through frozen blocks, with an adapter whose gradients are wanted.

To go backward, a sequence runs forward once more. Of as many blocks as fit into ``KEPT_BYTES`` activations
are kept until then; of the others only what enters them is, and they are computed again one by one, the last
one first (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from shoal.errors import DeadlineExceeded, StepFailed
from shoal.executor.adapters.modules import AdaptedLinear, added, find_linear
from shoal.executor.arrays import Floats
from shoal.executor.packed import PackedLinear
from shoal.models.build.span import SpanModule

KEPT_BYTES = 1 << 28
"""Activations of one sequence that are kept; those of its first block are in any case."""


@dataclass(frozen=True, slots=True)
class TrainingLayer:
    """An adapter's part of a linear layer, with its name in the block."""

    block: int
    name: str
    down: torch.Tensor
    """``[rank, cols]``"""
    up: torch.Tensor
    """``[rows, rank]``"""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingWork:
    """What is to be computed."""

    lengths: Sequence[int]
    """Tokens of each sequence."""
    hidden: torch.Tensor
    """float32 ``[rows, width]``, the sequences one below the other."""
    gradients: torch.Tensor | None
    """Of what comes out, as many; ``None`` where that is wanted itself."""
    list_name: str
    scale: float
    layers: Sequence[TrainingLayer]
    within_s: float
    """What computing it may take; whatever takes longer is given up."""


def check_trainable(module: SpanModule) -> str:
    """Why gradients cannot go through a span; empty where they can."""
    if module.stateless or not module.list_name:
        return "its blocks are no decoder's"
    if any(isinstance(layer, PackedLinear) for layer in module.model.modules()):
        return "its weights are packed, and gradients go through floats alone: serve it with --format fp32"
    return ""


class TrainingRun:
    """Work that is done sequence by sequence, so that others may compute in between. For one thread.

    Between two sequences nothing of it is in the span's modules, and nothing of it in memory but what it was
    given and what it has found.
    """

    def __init__(self, module: SpanModule, work: TrainingWork) -> None:
        """Raises DigestMismatch: the adapter does not fit the layers."""
        for parameter in module.model.parameters():
            parameter.requires_grad_(False)
        self._module, self._work = module, work
        self._backward = work.gradients is not None
        self._linears = [_linear(module, work, low) for low in work.layers]
        self._factors = [
            half.requires_grad_(self._backward) for low in self._linears for half in (low.down, low.up)
        ]
        self._outs: list[torch.Tensor] = []
        self._left_s = work.within_s

    def advance(self) -> bool:
        """Compute the next sequence.

        Returns:
            Whether it was the last one.

        Raises:
            DeadlineExceeded: all took too long.
        """
        began, done, module, work = time.monotonic(), len(self._outs), self._module, self._work
        at = sum(work.lengths[:done])
        kept = _activations_kept(module) if self._backward else nullcontext()
        with added(self._linears), _bounded(module, began + self._left_s), kept:
            self._outs.append(_run(module, work, slice(at, at + work.lengths[done])).float().cpu())
        self._left_s -= time.monotonic() - began
        return len(self._outs) == len(work.lengths)

    def result(self) -> list[Floats]:
        """What came out; or the gradients of what went in, and of the adapter's matrices in their order.

        Raises:
            StepFailed: it is not finite.
        """
        found = [torch.cat(self._outs)]
        if self._backward:
            found += [torch.zeros_like(half) if half.grad is None else half.grad for half in self._factors]
        if not all(bool(tensor.isfinite().all()) for tensor in found):
            raise StepFailed("the numbers that came out are not finite")
        return [tensor.detach().float().cpu().contiguous().numpy() for tensor in found]


def _run(module: SpanModule, work: TrainingWork, rows: slice) -> torch.Tensor:
    """One sequence: what comes out, or the gradients of what went in."""
    hidden = work.hidden[rows].to(module.device, module.dtype)[None]
    if work.gradients is None:
        with torch.no_grad():
            return module.run_whole(hidden)[0]
    hidden = hidden.clone().requires_grad_()
    with torch.enable_grad():
        out = module.run_whole(hidden)
        out.backward(work.gradients[rows].to(out.device, out.dtype)[None])
    if hidden.grad is None:
        raise StepFailed("no gradient came back to what went in")
    return hidden.grad[0]


def _linear(module: SpanModule, work: TrainingWork, low: TrainingLayer) -> AdaptedLinear:
    """A client's part of a layer. Raises DigestMismatch: it does not fit."""
    sizes = (len(low.up), low.down.shape[1])
    layer = find_linear(module, "that is tuned", work.list_name, low.block, low.name, sizes)
    return AdaptedLinear(layer, low.down.to(module.device), low.up.to(module.device), work.scale)


class _Keeping:
    """Which blocks keep their activations in one run: as many as fit, as far as the first one tells."""

    def __init__(self, module: SpanModule) -> None:
        self._weights = {_storage(held) for held in (*module.model.parameters(), *module.model.buffers())}
        self._block_bytes: int | None = None
        self._left = KEPT_BYTES

    def run(self, forward: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """One block's forward."""
        if self._block_bytes is None:
            sizes: dict[int, int] = {}

            def note(saved: torch.Tensor) -> torch.Tensor:
                if _storage(saved) not in self._weights:
                    sizes[_storage(saved)] = saved.untyped_storage().nbytes()
                return saved

            with saved_tensors_hooks(note, _same):
                made = forward(*given, **named)
            self._block_bytes = sum(sizes.values())
        elif self._block_bytes <= self._left:
            made = forward(*given, **named)
        else:
            return checkpoint(forward, *given, use_reentrant=False, preserve_rng_state=False, **named)
        self._left -= self._block_bytes
        return made


def _storage(tensor: torch.Tensor) -> int:
    """Where a tensor's numbers lie, which views of it share."""
    return tensor.untyped_storage().data_ptr()


def _same(saved: torch.Tensor) -> torch.Tensor:
    return saved


@contextmanager
def _activations_kept(module: SpanModule) -> Generator[None]:
    """While a sequence runs, blocks keep what a step backward needs, or what enters them and nothing else."""
    keeping = _Keeping(module)
    with ExitStack() as stack:
        for block in module.blocks.modules:
            # The forward, not the block: hooks at its ends, by which a span is entered and left, run once.
            block.forward = partial(keeping.run, block.forward)  # of this module alone, before its class's
            stack.callback(vars(block).pop, "forward")
        yield


@contextmanager
def _bounded(module: SpanModule, until: float) -> Generator[None]:
    """Give up at a block that begins after ``until``, on the way there or back."""

    def check(*_: object) -> None:
        if time.monotonic() > until:
            raise DeadlineExceeded("a training step took longer than this node allows")

    with ExitStack() as stack:
        for block in module.blocks.modules:
            stack.callback(block.register_forward_pre_hook(check).remove)
            stack.callback(block.register_full_backward_pre_hook(check).remove)
        yield
