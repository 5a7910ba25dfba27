"""What a run tunes: an adapter of the blocks, or a soft prompt before them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import torch

from shoal.errors import UsageError
from shoal.executor.arrays import Floats
from shoal.types import Span

TuningMethod = Literal["lora", "prompt"]
METHODS: tuple[TuningMethod, ...] = ("lora", "prompt")


def tuning_method(name: str) -> TuningMethod:
    """A method by its name. Raises UsageError: there is none."""
    for method in METHODS:
        if method == name:
            return method
    raise UsageError(f"there is no method {name!r}", check=f"name one of: {', '.join(METHODS)}")


class Tuned(Protocol):
    """Parameters of the client's own, in float32."""

    @property
    def parameters(self) -> Sequence[torch.nn.Parameter]:
        """In an order that stays."""
        ...

    @property
    def layer_names(self) -> Sequence[str]:
        """Of the linear layers that it changes in each block, sorted."""
        ...

    @property
    def rows(self) -> torch.Tensor | None:
        """What stands before each sequence, ``[n, width]``, as embeddings are; ``None``: nothing."""
        ...

    def named(self) -> Mapping[str, torch.nn.Parameter]:
        """The parameters by the names that PEFT gives them in files."""
        ...

    def add_gradients(self, span: Span, gradients: Floats) -> None:
        """Add what a hop has found for its blocks."""
        ...

    def config(self, base_name: str) -> dict[str, Any]:
        """``adapter_config.json`` as PEFT reads it."""
        ...
