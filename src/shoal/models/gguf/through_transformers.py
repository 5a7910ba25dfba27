"""A GGUF file becomes a Hugging Face folder by transformers' own loader: any architecture that it converts.

Weights are stored in float32, as ``weights.py`` says why.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.build.loader import first_line
from shoal.models.build.skeleton import causal_class
from shoal.models.gguf.joined import join
from shoal.models.gguf.splits import Gguf
from shoal.models.seam.config import AutoConfig, GenerationConfig
from shoal.models.seam.gguf import read_tensors
from shoal.models.seam.loading import fill
from shoal.models.seam.logging import quiet
from shoal.models.seam.tokenizer import AutoTokenizer
from shoal.models.seam.versions import installed_version
from shoal.progress import Progress

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
                f"{gguf.file}: transformers {installed_version()} cannot convert it ({first_line(error)})",
                check="use the model's safetensors, if there are any",
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
    with quiet():
        where, name = str(file.parent), file.name
        config = AutoConfig.from_pretrained(where, gguf_file=name)
        tokenizer = AutoTokenizer.from_pretrained(where, gguf_file=name)
        config.name_or_path = ""
        cls = causal_class(config)
        tensors = read_tensors(file, config, partial(progress, "Converting"))
        model, missing = fill(cls, config, tensors, torch.float32)
    if missing:
        raise _Missing(missing[0])
    return model, tokenizer
