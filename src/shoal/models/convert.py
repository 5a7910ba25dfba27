"""A GGUF file becomes a Hugging Face folder, once.

Weights are stored in float32. A GGUF's blocks are small integers times a float16 scale plus a float16 minimum
(Q4_1): the products need more bits than bfloat16 or float16 have, so float32 is the smallest type that keeps
what transformers computes from the file when it loads it itself.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from gguf import GGUFReader
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    modeling_gguf_pytorch_utils,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.hollow import causal_class
from shoal.models.loader import first_line, quiet
from shoal.models.progress import Progress

# What transformers and gguf raise on a file that they cannot make sense of.
UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, NotImplementedError)


def converted_size(file: Path) -> int:
    """Bytes that the converted weights take.

    Raises:
        BadWeights: this is no GGUF file, or it is truncated.
    """
    try:
        reader = GGUFReader(file)
        return sum(4 * math.prod(int(n) for n in tensor.shape) for tensor in reader.tensors)
    except (*UNREADABLE, OverflowError, OSError) as error:
        raise BadWeights(
            f"{file}: not a GGUF file that can be read ({first_line(error)})",
            check="whether it was downloaded completely",
        ) from error


def convert_gguf(file: Path, folder: Path, progress: Progress) -> None:
    """Write ``folder``: config, generation config, tokenizer with its chat template, weights.

    Holds all weights in memory, in float32, while it runs.

    Raises:
        UnsupportedModel: transformers does not know the architecture.
        BadWeights: the file is damaged.
    """
    progress("Reading the tokenizer", 0, 0)
    try:
        with quiet(), tempfile.TemporaryDirectory() as alone:
            # transformers takes a folder and a name in it, and looks for other files beside it: none are.
            (Path(alone) / "model.gguf").symlink_to(file.resolve())
            config = AutoConfig.from_pretrained(alone, gguf_file="model.gguf")
            tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file="model.gguf")
        config.name_or_path = ""
        cls = causal_class(config)
        with quiet(), _told(progress):
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(config)
            tensors = load_gguf_checkpoint(
                str(file), return_tensors=True, model_to_load=skeleton, torch_dtype=torch.float32
            )["tensors"]
            model, info = cast(
                "tuple[Any, dict[str, Any]]",
                cls.from_pretrained(
                    None, config=config, state_dict=tensors, dtype=torch.float32, output_loading_info=True
                ),
            )
            del tensors
    except UNREADABLE as error:
        raise UnsupportedModel(
            f"{file}: transformers {transformers.__version__} cannot convert it ({first_line(error)})",
            check="whether the model is there as safetensors too; take those",
        ) from error
    if info["missing_keys"]:
        raise BadWeights(f"{file}: tensor {sorted(info['missing_keys'])[0]} is missing")
    progress("Writing", 0, 0)
    with quiet():
        model.generation_config = GenerationConfig.from_model_config(config)
        model.save_pretrained(folder, max_shard_size="5GB")
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)


@contextmanager
def _told(progress: Progress) -> Generator[None]:
    """Tell ``progress`` of each tensor, where transformers would draw a bar that cannot be switched off."""

    def bar(tensors: Collection[object], **_: object) -> Iterator[object]:
        for done, tensor in enumerate(tensors):
            progress("Converting", done, len(tensors))
            yield tensor

    library = cast(Any, modeling_gguf_pytorch_utils)
    drawn, library.tqdm = library.tqdm, bar
    try:
        yield
    finally:
        library.tqdm = drawn
