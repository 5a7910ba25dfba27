"""The reader of GGUF files.

Relied on: config and tokenizer are read from a GGUF file by a folder and a name in it;
``load_gguf_checkpoint`` gives a file's tensors by the names of a model of that config, in a dtype; and it
draws its bar by the name ``tqdm`` of its module, over the file's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch

from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import expect_arguments, expect_members, relied_on

with relied_on("GGUF files"):
    from transformers import AutoModelForCausalLM, modeling_gguf_pytorch_utils
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    expect_arguments(load_gguf_checkpoint, "return_tensors", "model_to_load", "torch_dtype")
    expect_members(modeling_gguf_pytorch_utils, "tqdm")


ReportProgress = Callable[[int, int], None]
"""Told of each tensor: how many are done, of how many."""


def read_tensors(file: Path, config: PretrainedConfig, report: ReportProgress) -> dict[str, Any]:
    """A file's tensors in float32, by the names of a model of ``config``.

    Raises:
        Whatever transformers raises on a file that it cannot make sense of.
    """
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config)
    with _bar(report):
        return load_gguf_checkpoint(
            str(file), return_tensors=True, model_to_load=skeleton, torch_dtype=torch.float32
        )["tensors"]


@contextmanager
def _bar(report: ReportProgress) -> Generator[None]:
    """Tell ``report`` of each tensor, where transformers would draw a bar that cannot be switched off."""

    def bar(tensors: Collection[object], **_: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors):
            report(done, len(tensors))
            yield tensor

    library = cast(Any, modeling_gguf_pytorch_utils)
    drawn, library.tqdm = library.tqdm, bar
    try:
        yield
    finally:
        library.tqdm = drawn
