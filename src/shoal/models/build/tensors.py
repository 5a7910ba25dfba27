"""The tensors of spans and ends: what may go in, and what stays in memory."""

from __future__ import annotations

import torch
from torch import nn

from shoal.errors import StepFailed


def check_hidden(hidden: torch.Tensor, width: int, dtype: torch.dtype) -> None:
    """Check that ``hidden`` is ``[1, n, width]`` in ``dtype``.

    Raises:
        StepFailed: it is something else.
    """
    if hidden.ndim != 3 or hidden.shape[0] != 1 or hidden.shape[1] < 1 or hidden.shape[2] != width:
        raise StepFailed(f"hidden states of shape {tuple(hidden.shape)}, not [1, n, {width}]")
    if hidden.dtype != dtype:
        raise StepFailed(f"hidden states in {hidden.dtype}, not {dtype}")


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of a module's parameters, each counted once, and of what its modules hold packed."""
    plain = sum(p.numel() * p.element_size() for p in model.parameters())
    return plain + sum(int(getattr(module, "packed_bytes", 0)) for module in model.modules())
