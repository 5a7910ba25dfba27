"""A GGUF file becomes a checkpoint's folder, once: with config and tokenizer, and the weights in the file.

The weights of what our kernels run stay in the file, which the folder leads to. Anything else goes the way
through transformers, which takes all weights into memory and writes them in float32.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from shoal.models.gguf.families import Conversion, plan_conversion
from shoal.models.gguf.fields import Fields, NotCovered
from shoal.models.gguf.index import write_index
from shoal.models.gguf.splits import Gguf, read_gguf
from shoal.models.gguf.tokenizer import convert_tokenizer
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


TOKENIZER_SIZE = 4
"""Bytes that config and tokenizer take as JSON, at most, for each of the pairs in the file."""


def converted_size(file: Path) -> int:
    """Bytes that are written for a model, beside its file.

    Raises:
        BadWeights, UnsupportedModel: see :func:`shoal.models.gguf.splits.read_gguf` and ``plan_conversion``.
    """
    gguf = read_gguf(file)
    try:
        plan_conversion(gguf)
    except NotCovered:
        return sum(4 * math.prod(tensor.shape) for tensor in gguf.tensors.values())
    begin, end = gguf.headers[0].pairs_at
    return TOKENIZER_SIZE * (end - begin)


def convert_gguf(file: Path, folder: Path, progress: Progress, *, take: bool = False) -> None:
    """Write ``folder``: config, generation config, tokenizer with its template, and where the weights lie.

    Args:
        file: the model's file, or any one of several that it is split into.
        take: whether the files may be moved into ``folder``; else links there lead to them.

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
    names = {header.file: name for header, name in zip(gguf.headers, _file_names(gguf), strict=True)}
    write_index(folder, [replace(entry, file=folder / names[entry.file]) for entry in conversion.tensors])
    for source, name in names.items():
        if take:
            source.rename(folder / name)
        else:
            (folder / name).symlink_to(source.resolve())


def _file_names(gguf: Gguf) -> list[str]:
    """What the files are called in the model's folder, as llama.cpp finds them too."""
    count = len(gguf.headers)
    if count == 1:
        return ["model.gguf"]
    return [f"model-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]


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
