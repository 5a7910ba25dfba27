"""Files and folders that are taken for a model's: what they are, and what to do."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights, ModelError, UnknownModel, UnsupportedModel

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
OTHERS = {
    "*.onnx": "ONNX",
    "onnx/*.onnx": "ONNX",
    "*.h5": "TensorFlow",
    "*.msgpack": "Flax",
    "*.tflite": "TFLite",
}
OLD = (b"ggml", b"tjgg", b"lmgg", b"fmgg")
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x04", b"\x80\x05")
TAKE_OTHER = "use the model as safetensors or as a GGUF file, if it is published so"
MAX_JSON = 1 << 20
"""Bytes of a JSON file that is looked at for a name."""


def what_it_is(file: Path) -> tuple[str, str]:
    """What a file is that does not begin as one of weights does, and what to do; empty if that is not known.

    Raises:
        OSError: it cannot be read.
    """
    with file.open("rb") as stream:
        begin = stream.read(64)
    kinds = (
        (
            begin.startswith(b"version https://git-lfs"),
            "a Git LFS pointer, the note that stands for the file in a clone without LFS",
            "run `git lfs pull` in its folder, or pull the model by its hub id",
        ),
        (
            begin.lstrip().lower().startswith((b"<!doctype html", b"<html")),
            "a web page",
            "the link that it was fetched from: it led to a page, not to the file",
        ),
        (begin.startswith(b"GGUF"), "a GGUF file", "its name, which must end in .gguf; pull it by its path"),
        (begin.startswith(OLD), "of llama.cpp's format before GGUF", "whether the model exists as GGUF"),
        (begin.startswith(PICKLES), "a pickle, which can run code and is never loaded", TAKE_OTHER),
        (not begin, "empty", "fetch the file again: its download did not begin"),
        (
            not begin.strip(b"\0"),
            "full of zeros where it begins",
            "fetch the file again: its download was cut off",
        ),
    )
    return next(((what, check) for found, what, check in kinds if found), ("", ""))


def no_model(folder: Path) -> ModelError:
    """The error about a folder without a config or without weights that we read."""
    return (
        _unfinished(folder)
        or _adapter(folder)
        or _other_layout(folder)
        or _other_weights(folder)
        or _elsewhere(folder)
        or _only_part(folder)
    )


def _adapter(folder: Path) -> ModelError | None:
    if not (folder / "adapter_config.json").is_file():
        return None
    base = _field(folder / "adapter_config.json", "base_model_name_or_path")
    return UnsupportedModel(
        f"{folder} is an adapter (LoRA)" + (f" for {base[:100]}" if base else "") + ", not a model",
        check="merge it into its base model with peft, model.merge_and_unload().save_pretrained(folder), and "
        "pull that folder",
    )


def _other_layout(folder: Path) -> ModelError | None:
    if (folder / "model_index.json").is_file():
        return UnsupportedModel(
            f"{folder} is a pipeline of diffusers, which makes images", check="take a language model"
        )
    if any(folder.glob("consolidated*.safetensors")) or (folder / "params.json").is_file():
        return UnsupportedModel(
            f"{folder} has Mistral's or Meta's own layout (consolidated weights, params.json)",
            check="fetch the same model's config.json and model*.safetensors, which its repository has too",
        )
    return None


def _other_weights(folder: Path) -> ModelError | None:
    if any(found for pattern in PICKLED for found in folder.glob(pattern)):
        return UnsupportedModel(
            f"{folder}: its weights are pickled (.bin or .pt), which can run code and are never loaded",
            check="convert the model to safetensors where you trust it: "
            "model.save_pretrained(folder) with transformers",
        )
    kind = next((kind for pattern, kind in OTHERS.items() if any(folder.glob(pattern))), None)
    if kind is not None:
        return UnsupportedModel(f"{folder}: its weights are {kind}'s, which are not read", check=TAKE_OTHER)
    shards = sorted(folder.glob("model-*-of-*.safetensors"))
    if shards and (folder / "config.json").is_file():
        return BadWeights(
            f"{folder} has {shards[0].name} and no model.safetensors.index.json, which says what is in which",
            check="fetch the index too",
        )
    if other := next(iter(sorted(folder.glob("*.safetensors"))), None):
        return UnsupportedModel(
            f"{folder} has {other.name}, which is no language model's name for its weights",
            check="give the folder of a whole model: it has config.json and model.safetensors",
        )
    return None


def _elsewhere(folder: Path) -> ModelError | None:
    if ggufs := sorted(folder.glob("*.gguf")):
        return UnknownModel(
            f"{folder} holds GGUF files: a model is one of them",
            check="give the file's path",
            next_command=f"shoal models pull {ggufs[0]}",
        )
    snapshots = sorted(folder.glob("snapshots/*/config.json"))
    if snapshots and folder.name.startswith("models--"):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        return UnknownModel(
            f"{folder} is where the hub's cache keeps {repo}", next_command=f"shoal models pull {repo}"
        )
    inside = sorted(folder.glob("*/config.json")) or snapshots
    if not (folder / "config.json").is_file() and inside:
        return UnknownModel(
            f"{folder} is no model: it has no config.json, but {inside[0].parent.name} in it has",
            next_command=f"shoal models pull {inside[0].parent}",
        )
    return None


def _unfinished(folder: Path) -> ModelError | None:
    """A download that did not end, of the hub's client or of a browser."""
    patterns = ("*.incomplete", ".cache/huggingface/download/**/*.incomplete", "*.part", "*.crdownload")
    left = next((found for pattern in patterns for found in folder.glob(pattern)), None)
    if left is None:
        return None
    return BadWeights(
        f"{folder} is not downloaded completely: {left.name[:80]} is left of it",
        check="run the download again, until it ends; or pull the model by its hub id",
    )


def _only_part(folder: Path) -> ModelError:
    if (folder / "config.json").is_file():
        return BadWeights(
            f"{folder}: it has no model.safetensors", check="check that the model was downloaded completely"
        )
    tokenizer = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))
    return UnknownModel(
        f"{folder} is no model: it has no config.json" + (", only a tokenizer" if tokenizer else ""),
        check="give a Hugging Face folder, a .gguf file or a name",
        next_command="shoal models list",
    )


def _field(file: Path, name: str) -> str:
    """A text of a JSON file; empty where there is none, or no such file can be read."""
    with suppress(OSError, ValueError, RecursionError):
        if file.stat().st_size <= MAX_JSON:
            value: object = json.loads(file.read_bytes())
            found = cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
            return found if isinstance(found, str) else ""
    return ""
