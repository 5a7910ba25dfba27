"""A GGUF file becomes a Hugging Face folder, once.

What our kernels run is converted here, in seconds and with little memory. Anything else goes the way through
transformers, which takes all weights into memory.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from shoal.models.gguf.families import Conversion, plan_conversion
from shoal.models.gguf.fields import Fields, NotCovered
from shoal.models.gguf.splits import Gguf, read_gguf
from shoal.models.gguf.tokenizer import convert_tokenizer
from shoal.models.gguf.weights import write_weights
from shoal.models.untrusted import panics
from shoal.progress import Progress

SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""What a model's authors recommend: by the name in GGUF, that in ``generation_config.json``."""


def converted_size(file: Path) -> int:
    """Bytes that the converted weights take.

    Raises:
        BadWeights, UnsupportedModel: see :func:`shoal.models.gguf.splits.read_gguf`.
    """
    return sum(4 * math.prod(tensor.shape) for tensor in read_gguf(file).tensors.values())


def convert_gguf(file: Path, folder: Path, progress: Progress) -> None:
    """Write ``folder``: config, generation config, tokenizer with its chat template, weights in float32.

    Args:
        file: the model's file, or any one of several that it is split into.

    Raises:
        UnsupportedModel: neither we nor transformers know the architecture.
        BadWeights: a file is damaged, or missing.
    """
    progress("Reading the tokenizer", 0, 0)
    gguf = read_gguf(file)
    folder.mkdir(exist_ok=True)
    with panics.as_errors(file):
        try:
            conversion = plan_conversion(gguf)
            convert_tokenizer(gguf, folder, conversion.config["max_position_embeddings"])
        except NotCovered:
            from shoal.models.gguf.through_transformers import convert  # noqa: PLC0415 - imports torch

            shutil.rmtree(folder)
            convert(gguf, folder, progress)
            return
    _write_json(folder / "config.json", conversion.config)
    _write_json(folder / "generation_config.json", _generation(gguf, conversion))
    write_weights(conversion.tensors, folder / "model.safetensors", progress)


def _generation(gguf: Gguf, conversion: Conversion) -> dict[str, Any]:
    """What ends an answer, and how the model's authors would choose its tokens."""
    fields = Fields(gguf)
    config = {name: conversion.config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    turns = [fields.whole(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom")]
    ends = list(dict.fromkeys(end for end in turns if end is not None))
    if len(ends) > 1:
        config["eos_token_id"] = ends
    sampling = {name: fields.number(f"general.sampling.{key}") for key, name in SAMPLING.items()}
    stated = {name: value for name, value in sampling.items() if value is not None}
    if "top_k" in stated:
        stated["top_k"] = int(stated["top_k"])
    return config | stated | ({"do_sample": True} if stated else {})


def _write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
