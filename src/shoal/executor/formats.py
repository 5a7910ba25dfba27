"""What a node's format means for loading."""

from __future__ import annotations

from shoal.errors import UnsupportedModel
from shoal.types import DType, Format


def dtype_of(format: Format) -> DType:
    """The torch dtype in which weights of ``format`` are loaded.

    Raises:
        UnsupportedModel: this build has no kernels for the format.
    """
    if format == "fp32":
        return "float32"
    if format == "bf16":
        return "bfloat16"
    raise UnsupportedModel(
        f"this build cannot hold weights in {format}",
        check="fp32 and bf16 run everywhere",
        next_command="shoal serve MODEL --format bf16",
    )
