"""Which modules are linear layers.

Relied on: GPT-2's ``Conv1D`` is a linear layer whose weights are ``[inputs, outputs]``, and ``FalconLinear``
is torch's own, written out.
"""

from __future__ import annotations

from torch import nn

from shoal.models.seam.contract import relied_on

with relied_on("linear layers"):
    from transformers.pytorch_utils import Conv1D

__all__ = ["Conv1D", "is_linear", "is_turned"]


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies by its ``weight`` and adds its ``bias``, if any, and nothing else."""
    return type(module) in (nn.Linear, Conv1D) or type(module).__name__ == "FalconLinear"


def is_turned(module: nn.Module) -> bool:
    """Whether a linear layer's weights are ``[inputs, outputs]``, where torch has outputs first."""
    return isinstance(module, Conv1D)
