"""The models that are measured: any that Shoal knows, and one of random weights in the shape of TinyLlama.

Speed does not depend on what the weights are, so a model that needs no download does.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file

from shoal.config import Settings
from shoal.executor.load import holds_published
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.progress import Progress
from shoal.types import Format

RANDOM = "random-1.1b"
SEED = 0
SPREAD = 0.02
"""Standard deviation of the weights, that with which Llama's training begins."""
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's numbers; by default those of TinyLlama 1.1B (Zhang et al., 2024)."""

    blocks: int = 22
    hidden: int = 2048
    ffn: int = 5632
    heads: int = 32
    kv_heads: int = 4
    vocab: int = 32000
    context: int = 8192

    def config(self) -> dict[str, object]:
        """The ``config.json`` of such a model."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.blocks,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }


def measured_model(settings: Settings, progress: Progress) -> tuple[Settings, LocalModel]:
    """The model of ``settings.model``, fetched or made first, and the settings that name it to any process.

    Raises:
        ShoalError: the model cannot be had.
    """
    if settings.model == RANDOM:
        folder = bench_folder(settings) / RANDOM
        if not (folder / "config.json").exists():
            progress(f"writing {RANDOM}", 0, 0)
            write_random(folder, Shape())
        settings = replace(settings, model=str(folder))
    return settings, ModelStore(settings.paths.models).resolve(settings.model, progress)


def held_formats(model: LocalModel, formats: Sequence[Format]) -> Sequence[Format]:
    """Those of ``formats`` that a model can be held in; ``published`` is for one of integers."""
    kept = holds_published(model)
    return [format for format in formats if kept or format != "published"]


def described_model(model: LocalModel) -> dict[str, str]:
    """What a report says of the model that was measured."""
    return {"name": model.name, "digest": model.digest}


def bench_folder(settings: Settings) -> Path:
    """Where benchmarks keep what takes long to make."""
    folder = settings.paths.cache / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_random(folder: Path, shape: Shape) -> None:
    """Write a Llama of random bfloat16 weights, a file for each block, with a tokenizer of as many words.

    The same ``shape`` gives the same weights. The folder is there when it is whole; a second process waits.
    """
    with FileLock(folder.with_suffix(".lock")):
        if folder.exists():
            return
        partial = folder.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_weights(partial, shape)
        _write_tokenizer(partial, shape.vocab)
        (partial / "config.json").write_text(json.dumps(shape.config(), indent=1))
        partial.rename(folder)


def _write_weights(folder: Path, shape: Shape) -> None:
    generator = torch.Generator().manual_seed(SEED)

    def matrix(rows: int, cols: int) -> torch.Tensor:
        return (torch.randn(rows, cols, generator=generator) * SPREAD).bfloat16()

    hidden, kv = shape.hidden, shape.hidden // shape.heads * shape.kv_heads
    norm = torch.ones(hidden, dtype=torch.bfloat16)
    tensors = {
        "model.embed_tokens.weight": matrix(shape.vocab, hidden),
        "model.norm.weight": norm,
        "lm_head.weight": matrix(shape.vocab, hidden),
    }
    where: dict[str, str] = {}
    for number in range(shape.blocks + 1):
        name = f"model-{number + 1:05}-of-{shape.blocks + 1:05}.safetensors"
        if number:
            prefix = f"model.layers.{number - 1}."
            tensors = {
                f"{prefix}self_attn.q_proj.weight": matrix(hidden, hidden),
                f"{prefix}self_attn.k_proj.weight": matrix(kv, hidden),
                f"{prefix}self_attn.v_proj.weight": matrix(kv, hidden),
                f"{prefix}self_attn.o_proj.weight": matrix(hidden, hidden),
                f"{prefix}mlp.gate_proj.weight": matrix(shape.ffn, hidden),
                f"{prefix}mlp.up_proj.weight": matrix(shape.ffn, hidden),
                f"{prefix}mlp.down_proj.weight": matrix(hidden, shape.ffn),
                f"{prefix}input_layernorm.weight": norm.clone(),
                f"{prefix}post_attention_layernorm.weight": norm.clone(),
            }
        save_file(tensors, folder / name, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _write_tokenizer(folder: Path, vocab: int) -> None:
    """A word for each token, ``w7`` for token 7: programs that only take text can be asked for any tokens."""
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {f"w{token}": token for token in range(vocab)},
            "unk_token": "w0",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "w1",
        "eos_token": "w2",
        "unk_token": "w0",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
