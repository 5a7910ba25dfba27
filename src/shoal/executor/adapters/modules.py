"""Adapters on a model's own modules: for a forward of one session, its adapter's part is added to what each
linear layer gives. In float32 these are the operations of PEFT's own layers, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from shoal.executor.adapters.parts import check_sizes
from shoal.executor.packed import PackedLinear
from shoal.models.adapters.adapter import Adapter, other_model, span_blocks
from shoal.models.seam.layers import is_linear, is_turned
from shoal.types import Span


class LinearOwner(Protocol):
    """What has linear layers by the names that adapters give them; a ``SpanModule`` does."""

    span: Span
    device: torch.device
    list_name: str

    def layer(self, block: int, name: str) -> nn.Module | None: ...


@dataclass(frozen=True, slots=True)
class AdaptedLinear:
    """An adapter's part of one linear layer."""

    layer: nn.Module
    down: torch.Tensor
    up: torch.Tensor
    scale: float

    def add(self, layer: nn.Module, args: tuple[Any, ...], out: torch.Tensor) -> torch.Tensor:
        """A forward hook of the layer."""
        x = args[0].to(self.down.dtype)
        added = functional.linear(functional.linear(x, self.down), self.up) * self.scale
        return (out + added).to(out.dtype)


def find_linear(
    owner: LinearOwner, adapter: str, list_name: str, block: int, name: str, sizes: tuple[int, int]
) -> nn.Module:
    """A linear layer of the span, as an adapter calls it.

    Args:
        sizes: outputs and inputs of the adapter's part.

    Raises:
        DigestMismatch: there is none of that name, or it is of another size.
    """
    layer = owner.layer(block, name) if list_name == owner.list_name else None
    called = f"{list_name}.{block}.{name}"
    if layer is None or not (is_linear(layer) or isinstance(layer, PackedLinear)):
        raise other_model(adapter, "the model", called, "is no linear layer")
    check_sizes(adapter, called, sizes, _layer_sizes(layer))
    return layer


@contextmanager
def added(linears: Sequence[AdaptedLinear]) -> Generator[None]:
    """While the block runs, the layers give what they give with these parts."""
    with ExitStack() as stack:
        for linear in linears:
            stack.callback(linear.layer.register_forward_hook(linear.add).remove)
        yield


def _layer_sizes(layer: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a linear layer."""
    if isinstance(layer, PackedLinear):
        return layer.sizes
    rows, cols = layer.weight.shape  # pyright: ignore[reportGeneralTypeIssues]
    return (int(cols), int(rows)) if is_turned(layer) else (int(rows), int(cols))


class ModuleAdapter:
    """An adapter on the linear layers of one span, or of a part of it."""

    def __init__(self, adapter: Adapter, owner: LinearOwner) -> None:
        """Raises DigestMismatch: it does not fit the layers."""
        self._linears: list[AdaptedLinear] = []
        for block in span_blocks(adapter, owner.span):
            for name, low in adapter.blocks[block].items():
                layer = find_linear(owner, adapter.name, adapter.list_name, block, name, low.sizes)
                down, up = (torch.from_numpy(half).to(owner.device) for half in (low.down, low.up))
                self._linears.append(AdaptedLinear(layer, down, up, adapter.scale))

    def applied(self) -> AbstractContextManager[None]:
        """While the block runs, the layers give what they give with the adapter."""
        return added(self._linears)
