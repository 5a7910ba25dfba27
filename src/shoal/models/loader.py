"""Hugging Face's loader at work for us: only the tensors that a model has a place for, and no output."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open
from transformers import PretrainedConfig, PreTrainedModel
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.utils.quantization_config import QuantizationConfigMixin

from shoal.errors import BadWeights
from shoal.models.checkpoint import Checkpoint
from shoal.types import DType

TORCH_DTYPE: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
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
            model, info = cast(
                "tuple[PreTrainedModel, dict[str, Any]]",
                cls.from_pretrained(
                    None,
                    config=config,
                    state_dict=slices,
                    dtype=TORCH_DTYPE[dtype],
                    quantization_config=packing,
                    distributed_config=DistributedConfig(tp_size=split) if split > 1 else None,
                    output_loading_info=True,
                ),
            )
        except REFUSED as error:
            raise BadWeights(
                f"{checkpoint.folder}: transformers cannot load it ({first_line(error)})",
                check="whether the config and the weights belong together",
            ) from error
    if missing := sorted(info["missing_keys"]):
        raise BadWeights(
            f"{checkpoint.folder}: {len(missing)} tensors are missing, {missing[0]} among them",
            check="whether the model was fetched completely",
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
        backend = "mmap" if entry.dtype == stored else "pread"
        if (entry.file, backend) not in opened:
            handle = safe_open(entry.file, framework="pt", backend=backend)
            opened[entry.file, backend] = stack.enter_context(handle)
        slices[name] = opened[entry.file, backend].get_slice(name)
    return slices


@contextmanager
def quiet() -> Generator[None]:
    """No progress bars or load reports of transformers: ours are drawn by the CLI."""
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def first_line(error: Exception) -> str:
    """An error's first line, short enough for a message."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
