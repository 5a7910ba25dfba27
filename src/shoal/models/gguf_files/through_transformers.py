"""A GGUF file becomes a Hugging Face folder by transformers' own loader: any architecture that it converts.

Weights are stored in float32, as ``weights.py`` says why.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    modeling_gguf_pytorch_utils,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.gguf_files.joined import join
from shoal.models.gguf_files.splits import Gguf
from shoal.models.hollow import causal_class
from shoal.models.loader import first_line, quiet
from shoal.models.progress import Progress

# What transformers and gguf raise on a file that they cannot make sense of.
UNREADABLE = (ValueError, KeyError, IndexError, TypeError, AttributeError, RuntimeError, NotImplementedError)


def convert(gguf: Gguf, folder: Path, progress: Progress) -> None:
    """Write ``folder``: config, generation config, tokenizer with its chat template, weights.

    Holds all weights in memory, in float32, while it runs. A model in several files is first put into one, on
    the disk.

    Raises:
        UnsupportedModel: transformers does not know the architecture.
        BadWeights: the file is damaged.
    """
    # transformers takes a folder and a name in it, and looks for other files beside it: none are.
    with tempfile.TemporaryDirectory(dir=folder.parent) as alone:
        file = Path(alone) / "model.gguf"
        if len(gguf.headers) > 1:
            join(gguf, file)
        else:
            file.symlink_to(gguf.file.resolve())
        try:
            model, tokenizer = _load(file, progress)
        except UNREADABLE as error:
            raise UnsupportedModel(
                f"{gguf.file}: transformers {transformers.__version__} cannot convert it "
                f"({first_line(error)})",
                check="whether the model is there as safetensors too; take those",
            ) from error
        except _Missing as error:
            raise BadWeights(f"{gguf.file}: tensor {error} is missing") from error
    config = model.config
    progress("Writing", 0, 0)
    with quiet():
        model.generation_config = GenerationConfig.from_model_config(config)
        model.save_pretrained(folder, max_shard_size="5GB")
        tokenizer.model_max_length = config.max_position_embeddings
        tokenizer.save_pretrained(folder)


class _Missing(Exception):
    """A tensor that the model has, and the file has not."""


def _load(file: Path, progress: Progress) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    with quiet(), _told(progress):
        where, name = str(file.parent), file.name
        config = AutoConfig.from_pretrained(where, gguf_file=name)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        config.name_or_path = ""
        cls = causal_class(config)
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
    if info["missing_keys"]:
        raise _Missing(sorted(info["missing_keys"])[0])
    return model, tokenizer


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
