"""Hugging Face's loader at work for us: only the tensors that a model has a place for, and no output."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from shoal.errors import BadWeights
from shoal.models.checkpoint.checkpoint import Checkpoint
from shoal.models.checkpoint.floats import read_float32
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.loading import QuantizationConfigMixin, fill
from shoal.models.seam.logging import quiet
from shoal.models.seam.model import PreTrainedModel
from shoal.types import DType

TORCH_DTYPE: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
GGUF = ".gguf"
# What transformers raises on configs and weights that it cannot make sense of.
REFUSED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    AssertionError,
    StrictDataclassError,
)


def load_weights(
    cls: type[PreTrainedModel],
    checkpoint: Checkpoint,
    config: PretrainedConfig,
    dtype: DType,
    packing: QuantizationConfigMixin | None = None,
    split: int = 1,
) -> PreTrainedModel:
    """A model of class ``cls``, every tensor of which comes from the checkpoint.

    Args:
        packing: packs weights as they are read, one tensor at a time.
        split: over how many processes: all of torch.distributed's group, which has begun; all of them load.

    Raises:
        BadWeights: one is missing, or has another shape.
    """
    with ExitStack() as stack, quiet():
        slices = _slices(checkpoint, None if packing else dtype, stack)
        try:
            model, missing = fill(cls, config, slices, TORCH_DTYPE[dtype], packing, split)
        except REFUSED as error:
            raise BadWeights(
                f"{checkpoint.folder}: transformers cannot load it ({first_line(error)})",
                check="check that the config and the weights are of the same model",
            ) from error
    if missing:
        raise BadWeights(
            f"{checkpoint.folder}: {len(missing)} tensors are missing, {missing[0]} among them",
            check="check that the model was downloaded completely",
        )
    return model.eval()


def _slices(checkpoint: Checkpoint, dtype: DType | None, stack: ExitStack) -> dict[str, Any]:
    """Every tensor of a checkpoint, not read yet.

    Those that are kept as stored are mapped, as transformers does: they stay pages of the file, at the same
    alignment, on which the last bit of a matrix product can depend. Those that are converted are read, since
    mapped pages would stay in memory beside what they are converted to. With ``None`` all are converted.
    """
    stored = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", None: None}[dtype]
    opened: dict[tuple[Path, str], Any] = {}
    slices: dict[str, Any] = {}
    for name, entry in checkpoint.tensors.items():
        if _is_converted(entry):
            slices[name] = _ConvertedSlice(entry)
            continue
        backend = "mmap" if entry.dtype == stored else "pread"
        if not entry.file.exists():
            continue  # of a model that comes from peers, what others serve need not be here
        if (entry.file, backend) not in opened:
            handle = safe_open(entry.file, framework="pt", backend=backend)
            opened[entry.file, backend] = stack.enter_context(handle)
        slices[name] = opened[entry.file, backend].get_slice(entry.name)
    return slices


def read_tensor(entry: TensorEntry) -> torch.Tensor:
    """A tensor as it is stored; one of a GGUF file, or one that is quantised, in float32.

    Raises:
        BadWeights, UnsupportedModel: see :func:`shoal.models.checkpoint.floats.read_float32`.
    """
    if _is_converted(entry):
        return _ConvertedSlice(entry)[...]
    with safe_open(entry.file, framework="pt") as opened:
        return opened.get_tensor(entry.name)


def _is_converted(entry: TensorEntry) -> bool:
    return entry.file.suffix == GGUF or not entry.is_plain


class _ConvertedSlice:
    """A tensor of a GGUF file, or a quantised one, which becomes float32 once the loader takes of it."""

    def __init__(self, entry: TensorEntry) -> None:
        self._entry = entry

    def get_shape(self) -> list[int]:
        return list(self._entry.shape)

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, part: Any) -> torch.Tensor:
        # A copy in torch's own memory: the last bit of a product can depend on where it begins.
        return torch.from_numpy(read_float32(self._entry))[part].clone()


def first_line(error: Exception) -> str:
    """An error's first line, short enough for a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
