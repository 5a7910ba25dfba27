"""A checkpoint of Llama's shape as the GGUF file that llama.cpp reads, with the same weights in bfloat16.

The names are those of the ``gguf`` package. llama.cpp rotates neighbouring elements of a head where Hugging
Face rotates halves, so the rows of queries and keys are put in llama.cpp's order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from filelock import FileLock
from gguf import GGMLQuantizationType, GGUFWriter

from shoal.errors import UnsupportedModel
from shoal.models.build.loader import read_tensor
from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shoal.models.seam.config import PretrainedConfig
from shoal.models.store.local_model import LocalModel

NORMAL, CONTROL = 1, 3
"""Types of a token in GGUF."""
PRETOKENIZERS = {"SmolLM2": "smollm"}
"""How llama.cpp cuts a text before it is tokenized, by the beginning of the model's name."""


def write_gguf(model: LocalModel, file: Path) -> Path:
    """Write ``model`` to ``file`` if it is not there; a tensor at a time.

    Returns:
        ``file``, with matrices in bfloat16 and vectors in float32.

    Raises:
        UnsupportedModel: the model is not a Llama.
    """
    with FileLock(file.with_suffix(".lock")):
        if not file.exists():
            partial = file.with_suffix(".partial")
            _write(model, partial)
            partial.rename(file)
    return file


def _write(model: LocalModel, file: Path) -> None:
    checkpoint = open_checkpoint(model.path)
    config = read_model_config(checkpoint)
    if config.model_type != "llama":
        raise UnsupportedModel(
            f"{model.name} is a {config.model_type}: only a Llama can be compared with llama.cpp",
            next_command="shoal bench peers --model random-1.1b",
        )
    writer = GGUFWriter(str(file), "llama")
    _add_numbers(writer, config)
    _add_tokenizer(writer, model)
    names = _names(checkpoint, config)
    for name, written in names:
        entry = checkpoint.tensors[name]
        flat = len(entry.shape) == 1
        kind = GGMLQuantizationType.F32 if flat else GGMLQuantizationType.BF16
        size = int(np.prod(entry.shape)) * (4 if flat else 2)
        writer.add_tensor_info(written, entry.shape, np.dtype(np.float32), size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for array in _arrays(checkpoint, config, names):
        writer.write_tensor_data(array)
    writer.close()


def _add_numbers(writer: GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)


def _add_tokenizer(writer: GGUFWriter, model: LocalModel) -> None:
    """The tokenizer, where it is one of byte pairs as GPT-2's; else none, and prompts are token ids."""
    file = model.path / "tokenizer.json"
    stored = json.loads(file.read_text("utf-8")) if file.exists() else {}
    found = stored.get("model", {})
    if found.get("type") != "BPE":
        writer.add_tokenizer_model("no_vocab")
        return
    by_id = {number: token for token, number in found["vocab"].items()}
    special = {added["id"] for added in stored["added_tokens"] if added["special"]}
    by_id |= {added["id"]: added["content"] for added in stored["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(
        next((pre for name, pre in PRETOKENIZERS.items() if model.name.startswith(name)), "gpt-2")
    )
    writer.add_token_list(
        [by_id.get(number, f"<unused{number}>") for number in range(model.shape.vocab_size)]
    )
    writer.add_token_types(
        [CONTROL if number in special else NORMAL for number in range(model.shape.vocab_size)]
    )
    writer.add_token_merges(
        [merge if isinstance(merge, str) else " ".join(merge) for merge in found["merges"]]
    )
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(min(model.end_tokens, default=2))


def _names(checkpoint: Checkpoint, config: PretrainedConfig) -> list[tuple[str, str]]:
    """Every tensor's name here and in GGUF."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    found: list[tuple[str, str]] = []
    for name in checkpoint.tensors:
        written = names.get_name(name, try_suffixes=(".weight",))
        if written is None:
            raise UnsupportedModel(f"{checkpoint.folder}: llama.cpp has no place for tensor {name[:80]!r}")
        found.append((name, written))
    return found


def _arrays(
    checkpoint: Checkpoint, config: PretrainedConfig, names: list[tuple[str, str]]
) -> Iterator[np.ndarray]:
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, _ in names:
        tensor = read_tensor(checkpoint.tensors[name])
        if tensor.dim() == 1:
            yield tensor.float().numpy()
            continue
        for kind, count in heads.items():
            if f".{kind}." in name:
                tensor = in_pairs(tensor, count)
        yield tensor.bfloat16().contiguous().view(torch.int16).numpy()


def in_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows ``[heads × size, …]`` of halves, so that those which rotate together are neighbours."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)
