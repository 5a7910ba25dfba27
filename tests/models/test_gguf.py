"""GGUF files become Hugging Face folders: exactly, and without transformers where we know how."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from shoal.errors import UnsupportedModel
from shoal.models import convert
from shoal.models.convert import convert_gguf
from shoal.models.gguf_files import through_transformers
from shoal.models.gguf_files.families import FAMILIES
from shoal.models.gguf_files.splits import read_gguf
from shoal.models.progress import silent

from .ggufs import IN_PAIRS, write_family

KNOWN = ("llama", "llama_untied", "qwen2", "qwen3", "phi3", "smollm3", "gemma", "gemma3", "granite")
"""Families of small checkpoints that are converted without transformers."""
CHANGES: dict[str, dict[str, Any]] = {
    # What GGUF does not say, as llama.cpp takes it to be.
    "qwen2": {
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 6,
        "max_window_layers": 28,
    },
    "gemma3": {"layer_types": ["sliding_attention"] * 5 + ["full_attention"], "query_pre_attn_scalar": 16},
}
TEXTS = [
    "hello world",
    " a  b\n\n1. x",
    "naïve 漢字 👩‍👩‍👧!",
    "",
    "he'll say <s>hello</s>  42 times",
    "\t\r\n x",
]


def meaning(config: PretrainedConfig) -> dict[str, Any]:
    """A config without what only records who wrote it."""
    names = ("architectures", "transformers_version", "_name_or_path", "_model_name_or_path", "unk_token_id")
    return {key: value for key, value in config.to_dict().items() if key not in names}


@pytest.fixture
def no_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a file goes the way through transformers."""

    def refuse(*_: object) -> None:
        pytest.fail("it went through transformers")

    monkeypatch.setattr(through_transformers, "convert", refuse)


def test_all_architectures_of_the_kernels_are_tried() -> None:
    names = {"gemma3": "gemma3_text"}
    assert {names.get(name, name.removesuffix("_untied")) for name in KNOWN} == {
        family.model_type for family in FAMILIES.values()
    }


@pytest.mark.parametrize("family", KNOWN)
def test_a_model_comes_back_as_it_was_written(family: str, tmp_path: Path, no_transformers: None) -> None:
    meant = write_family(
        tmp_path / "m.gguf", tmp_path / "hf", family, pad_token_id=0, **CHANGES.get(family, {})
    )
    convert_gguf(tmp_path / "m.gguf", tmp_path / "out", silent)
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == meant.keys()
    for name, tensor in meant.items():
        assert torch.equal(loaded[name], tensor), name
    before, after = (AutoConfig.from_pretrained(tmp_path / folder) for folder in ("hf", "out"))
    for name, value in meaning(before).items():
        expected = float(np.float32(value)) if isinstance(value, float) else value
        assert meaning(after)[name] in (value, expected), name
    tokenizers = [AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("hf", "out")]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert [t.encode(text) for t in tokenizers for text in TEXTS[:1]] == [tokenizers[0].encode(TEXTS[0])] * 2


@pytest.mark.parametrize("family", ["llama", "llama_untied", "qwen2", "phi3", "gemma3"])
def test_it_is_what_transformers_makes_of_the_file(
    family: str, tmp_path: Path, no_transformers: None
) -> None:
    write_family(tmp_path / "m.gguf", tmp_path / "hf", family, **CHANGES.get(family, {}))
    convert_gguf(tmp_path / "m.gguf", tmp_path / "ours", silent)
    model, tokenizer = through_transformers._load(tmp_path / "m.gguf", silent)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    for name, tensor in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    theirs = meaning(model.config)
    if family == "gemma3":  # the file does not say it; transformers takes 256, and heads here have 16
        theirs["query_pre_attn_scalar"] = 16
    assert meaning(ours.config) == theirs
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text), text
        assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(
            text, add_special_tokens=False
        )
        assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    for name in ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id", "chat_template"):
        assert getattr(loaded, name) == getattr(tokenizer, name)
