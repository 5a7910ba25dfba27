"""The GGUF file of a checkpoint: the same weights under llama.cpp's names, in llama.cpp's order."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors import safe_open

from shoal.bench.peers.ggufs import in_pairs, write_gguf
from shoal.errors import UnsupportedModel
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.store.local_model import LocalModel


def stored(folder: Path, name: str) -> torch.Tensor:
    with safe_open(open_checkpoint(folder).tensors[name].file, framework="pt") as opened:
        return opened.get_tensor(name).float()


def test_it_holds_every_tensor_and_the_numbers_of_the_config(model: LocalModel, tmp_path: Path) -> None:
    reader = GGUFReader(write_gguf(model, tmp_path / "small.gguf"))
    assert len(reader.tensors) == len(open_checkpoint(model.path).tensors)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["tokenizer.ggml.model"] == "no_vocab"
    shown = (
        "block_count",
        "embedding_length",
        "attention.head_count",
        "attention.head_count_kv",
        "vocab_size",
    )
    assert [fields[f"llama.{name}"] for name in shown] == [2, 64, 4, 2, 120]
    tensors = {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for theirs, ours in {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.ffn_down.weight": "model.layers.1.mlp.down_proj.weight",
    }.items():
        assert np.array_equal(tensors[theirs], stored(model.path, ours).numpy())
    keys = stored(model.path, "model.layers.0.self_attn.k_proj.weight")
    assert np.array_equal(tensors["blk.0.attn_k.weight"], in_pairs(keys, 2).numpy())


def test_rows_that_rotate_together_are_neighbours() -> None:
    rows = torch.tensor(
        [[10], [11], [20], [21], [30], [31], [40], [41]]
    )  # two heads, halves (10 11, 20 21) …
    assert in_pairs(rows, 2).flatten().tolist() == [10, 20, 11, 21, 30, 40, 31, 41]


def test_a_tokenizer_of_byte_pairs_comes_along(model: LocalModel, folder: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in folder.iterdir():
        (copied / file.name).symlink_to(file)
    (copied / "tokenizer.json").unlink()
    found = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    added = [{"id": 3, "content": "<end>", "special": True}]
    (copied / "tokenizer.json").write_text(json.dumps({"model": found, "added_tokens": added}))
    reader = GGUFReader(write_gguf(replace(model, path=copied), tmp_path / "words.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.tokens"][:5] == ["a", "b", "ab", "<end>", "<unused4>"]
    assert fields["tokenizer.ggml.token_type"][:5] == [1, 1, 1, 3, 1]
    assert fields["tokenizer.ggml.merges"] == ["a b"]


def test_it_is_written_once(model: LocalModel, tmp_path: Path) -> None:
    (tmp_path / "there.gguf").write_bytes(b"as it was")
    assert write_gguf(model, tmp_path / "there.gguf").read_bytes() == b"as it was"


def test_what_is_no_llama_is_refused(model: LocalModel, folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "qwen"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "qwen2"}
    (other / "config.json").unlink()
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="only a Llama"):
        write_gguf(replace(model, path=other), tmp_path / "other.gguf")
