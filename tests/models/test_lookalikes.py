"""What is taken for a model and is none is called what it is, with what to do."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from shoal.errors import BadWeights, ModelError, UnknownModel, UnsupportedModel
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.headers import read_safetensors_header
from shoal.models.gguf.header import read_gguf_header

CONFIG = json.dumps({"model_type": "llama"})
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 134\n"
ADAPTER = json.dumps({"base_model_name_or_path": "org/base"})
MLX = json.dumps({"model_type": "llama", "quantization": {"group_size": 64, "bits": 4}})
GPTQ = json.dumps({"model_type": "llama", "quantization_config": {"bits": 4}})

FOLDERS: dict[str, tuple[dict[str, str], type[ModelError], str, str]] = {
    "an adapter": (
        {"adapter_config.json": ADAPTER, "adapter_model.safetensors": ""},
        *(UnsupportedModel, r"adapter \(LoRA\) for org/base", "merge"),
    ),
    "an adapter with a config": (
        {"config.json": CONFIG, "adapter_config.json": "{", "adapter_model.safetensors": ""},
        *(UnsupportedModel, "adapter", "merge"),
    ),
    "Mistral's layout": (
        {"params.json": "{}", "consolidated.safetensors": "", "tekken.json": "{}"},
        *(UnsupportedModel, "Mistral's", "config.json"),
    ),
    "Mistral's layout with a config": (
        {"config.json": CONFIG, "consolidated-00001-of-00002.safetensors": ""},
        *(UnsupportedModel, "Mistral's", r"model\*.safetensors"),
    ),
    "a pipeline": (
        {"model_index.json": "{}", "unet/config.json": "{}"},
        *(UnsupportedModel, "diffusers", "language model"),
    ),
    "ONNX": ({"config.json": CONFIG, "onnx/model.onnx": ""}, UnsupportedModel, "ONNX", "safetensors"),
    "TensorFlow": ({"config.json": CONFIG, "tf_model.h5": ""}, UnsupportedModel, "TensorFlow", "safetensors"),
    "a pickle": ({"pytorch_model.bin": ""}, UnsupportedModel, "pickled", "safetensors"),
    "MLX": ({"config.json": MLX, "model.safetensors": ""}, UnsupportedModel, "MLX", "GGUF"),
    "quantised": ({"config.json": GPTQ, "model.safetensors": ""}, UnsupportedModel, "quantised", "GGUF"),
    "half a download": (
        {"config.json": CONFIG, ".cache/huggingface/download/ab.incomplete": ""},
        *(BadWeights, "not downloaded completely", "again"),
    ),
    "half a file": ({"model.safetensors.incomplete": ""}, BadWeights, "not downloaded completely", "again"),
    "a tokenizer": ({"tokenizer.json": "{}"}, UnknownModel, "only a tokenizer", "folder"),
    "no index": (
        {"config.json": CONFIG, "model-00001-of-00002.safetensors": ""},
        *(BadWeights, "index.json", "index"),
    ),
    "a part": ({"vae.safetensors": ""}, UnsupportedModel, "vae.safetensors", "config.json"),
    "GGUF files": ({"m.gguf": ""}, UnknownModel, "GGUF", "path"),
    "nothing": ({"README.md": ""}, UnknownModel, "no config.json", "folder"),
    "no weights": ({"config.json": CONFIG}, BadWeights, "no model.safetensors", "completely"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    files, error, said, check = FOLDERS[kind]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(error, match=said) as caught:
        open_checkpoint(tmp_path)
    assert type(caught.value) is error
    assert re.search(check, caught.value.check)


def test_a_folder_that_holds_models_says_where_they_are(tmp_path: Path) -> None:
    inside = tmp_path / "models--org--some--name" / "snapshots" / "0123"
    inside.mkdir(parents=True)
    (inside / "config.json").write_text(CONFIG)
    for folder, named in ((inside.parents[1], "org/some--name"), (inside.parent, str(inside))):
        with pytest.raises(UnknownModel) as caught:
            open_checkpoint(folder)
        assert caught.value.next_command == f"shoal models pull {named}"


FILES = {
    "pointer": (POINTER.encode(), "Git LFS pointer", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html>" + b" " * 99, "web page", "link"),
    "pickle": (b"\x80\x02}q\x00" + b"." * 99, "pickle", "safetensors"),
    "zip": (b"PK\x03\x04" + b"." * 99, "pickle", "safetensors"),
    "empty": (b"", "empty", "again"),
    "zeros": (bytes(99), "zeros", "again"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_called_what_it_is(kind: str, tmp_path: Path) -> None:
    raw, said, check = FILES[kind]
    for name, read in (("model.safetensors", read_safetensors_header), ("model.gguf", read_gguf_header)):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(BadWeights, match=said) as caught:
            read(tmp_path / name)
        assert check in caught.value.check
