"""Hidden states between torch and the wire: rows of raw little-endian elements, and nothing else."""

from __future__ import annotations

import numpy as np
import torch

from shoal.errors import StepFailed
from shoal.types import DType

TORCH_DTYPE: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def to_bytes(hidden: torch.Tensor) -> bytes:
    """The bytes of ``hidden`` ``[1, rows, width]``, row by row.

    Raises:
        StepFailed: a value is NaN or infinite: what follows would be noise.
    """
    rows = hidden.detach().cpu().contiguous()
    if not _finite(rows):
        raise StepFailed("the hidden states are not finite", check="the weights, and the hop before this one")
    return rows.view(torch.uint8).numpy().tobytes()


def from_bytes(payload: bytes, dtype: DType, rows: int, width: int) -> torch.Tensor:
    """Hidden states ``[1, rows, width]`` from bytes whose length the wire has checked.

    Raises:
        StepFailed: a value is NaN or infinite.
    """
    hidden = torch.frombuffer(bytearray(payload), dtype=TORCH_DTYPE[dtype]).view(1, rows, width)
    if not _finite(hidden):
        raise StepFailed("hidden states that are not finite arrived", check="the hop before this one")
    return hidden


def _finite(hidden: torch.Tensor) -> bool:
    if hidden.dtype == torch.bfloat16:  # which numpy does not know
        return bool(torch.isfinite(hidden).all())
    return bool(np.isfinite(hidden.numpy()).all())  # a tenth of the time for the one row of a decode step
