"""Tiny models as GGUF files, as llama.cpp's converter would write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from shoal.models.build.loader import read_tensor
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.finite import SCALES
from shoal.testing.checkpoints import BASE, BLOCKS, write_checkpoint


def read_folder(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's folder as they are meant, from safetensors or GGUF files."""
    return {name: read_tensor(entry) for name, entry in open_checkpoint(folder).tensors.items()}


Q4_1 = gguf.GGMLQuantizationType.Q4_1
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_up_proj": "ffn_up",
}


def write_gguf(path: Path, scratch: Path) -> dict[str, torch.Tensor]:
    """Write it, projections in Q4_1; returns the tensors, by their Hugging Face names, that it stands for."""
    tensors = load_file(write_checkpoint(scratch) / "model.safetensors")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_block_count(BLOCKS)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(BASE["vocab_size"])
    _add_tokenizer(writer, scratch)
    meant: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        array, quantised = tensor.numpy(), "_proj" in name
        if quantised:
            packed = gguf.quantize(_interleaved(name, array), Q4_1)
            writer.add_tensor(_gguf_name(name), packed, raw_dtype=Q4_1)
            array = gguf.dequantize(gguf.quantize(array, Q4_1), Q4_1)
        else:
            writer.add_tensor(_gguf_name(name), array)
        meant[name] = torch.from_numpy(np.array(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return meant


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name in ("model.norm.weight", "lm_head.weight"):
        return {"model.norm.weight": "output_norm.weight"}.get(name, "output.weight")
    _, _, block, rest = name.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{block}.{NAMES[part]}.{kind}"


def _interleaved(name: str, array: np.ndarray) -> np.ndarray:
    """llama.cpp rotates pairs of neighbours, transformers the halves: the converter reorders the rows."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return array
    return in_pairs(array, heads)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    from transformers import AutoTokenizer

    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [gguf.TokenType.CONTROL if i < 3 else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(AutoTokenizer.from_pretrained(folder).chat_template)


ARCHS = {"gemma3_text": "gemma3"}
"""By transformers' type of model, GGUF's architecture where it has another name."""
IN_PAIRS = ("llama", "smollm3", "granite")


def write_family(
    path: Path,
    scratch: Path,
    family: str,
    *,
    quantised: bool = True,
    types: Mapping[str, str] = {},
    split: int = 0,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """Write a model of ``family`` with its tokenizer, matrices of blocks in Q4_1, the embedding in Q8_0.

    Args:
        scratch: where the Hugging Face folder that it is made of goes.
        types: by the last name of a linear layer, or ``""`` for all others of the blocks, other types.
        split: tensors in one file, if there are to be several.
        changes: fields of the config to set.

    Returns:
        The tensors, by their Hugging Face names, that it stands for.
    """
    tensors = load_file(write_checkpoint(scratch, family, **changes) / "model.safetensors")
    config = json.loads((scratch / "config.json").read_text())
    arch = ARCHS.get(config["model_type"], config["model_type"])
    writer = gguf.GGUFWriter(path, arch, split_max_tensors=split)
    add_numbers(writer, config)
    _add_tokenizer(writer, scratch)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, config["num_hidden_layers"])
    meant: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        array = tensor.numpy()
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            writer.add_tensor(stored, array + np.float32(1))
            meant[name] = torch.from_numpy((array + np.float32(1)) - np.float32(1))
            continue
        heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        paired = config[heads] if heads and arch in IN_PAIRS else 0
        if quantised and array.ndim == 2:
            named = types.get(name.split(".")[-2], types.get("", "Q4_1")) if "layers" in name else "Q8_0"
            how = gguf.GGMLQuantizationType[named]
            packed = quantise(array, how)
            writer.add_tensor(stored, in_pairs(packed, paired) if paired else packed, raw_dtype=how)
            array = gguf.dequantize(packed, how)
        else:
            writer.add_tensor(stored, in_pairs(array, paired) if paired else array)
        meant[name] = torch.from_numpy(np.array(array))
    close(writer)
    return meant


def quantise(array: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """A matrix in a type, ``[rows, bytes]``; random integers in those that the gguf package cannot write."""
    try:
        return gguf.quantize(array, kind)
    except NotImplementedError:
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        spread = 1.0
        blocks = np.random.default_rng(len(array)).integers(0, 256, (array.size // elements, size), np.uint8)
        for scale in (1.0, 0.02):  # the second as large as trained weights are
            for at in SCALES[kind.name][1]:
                blocks[:, at : at + 2] = np.frombuffer(np.float16(scale / spread).tobytes(), np.uint8)
            spread = float(gguf.dequantize(blocks, kind).std())
        return blocks.reshape(len(array), -1)


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows ``[heads × size, …]`` of halves in llama.cpp's order, those that rotate together side by side."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def add_numbers(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The pairs of a model's architecture."""
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    if "norm_epsilon" in config:
        writer.add_layer_norm_eps(config["norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    kind = config["model_type"]
    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    if kind in ("llama", "phi3", "granite", "smollm3"):
        head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        writer.add_rope_dimension_count(head_dim)
    if kind in ("qwen3", "gemma", "gemma3_text"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if kind == "phi3":
        writer.add_rope_scaling_orig_ctx_len(config["original_max_position_embeddings"])
    if kind == "gemma3_text":
        writer.add_sliding_window(config["sliding_window"])
    if kind == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])


def add_rope(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    """How positions are scaled, as llama.cpp's converter writes it: Llama 3's and Phi-3's as tensors."""
    turning = np.arange(8, dtype=np.float64)
    match rope["rope_type"]:
        case "llama3":
            waves = 2 * np.pi * rope["rope_theta"] ** (turning / 8)
            low, high = (
                rope["original_max_position_embeddings"] / rope[f"{end}_freq_factor"]
                for end in ("low", "high")
            )
            smooth = (rope["original_max_position_embeddings"] / waves - 1) / 3
            factors = np.where(waves > low, rope["factor"], 1 / ((1 - smooth) / rope["factor"] + smooth))
            writer.add_tensor("rope_freqs.weight", np.where(waves < high, 1, factors).astype(np.float32))
        case "longrope":
            rope |= {"short_factor": [1.0] * 8, "long_factor": [1.0 + 0.5 * turn for turn in range(8)]}
            writer.add_rope_scaling_attn_factors(1.2)
            for kind in ("short", "long"):
                factors = np.array(rope[f"{kind}_factor"], np.float32)
                writer.add_tensor(f"rope_factors_{kind}.weight", factors)
        case kind:
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(rope["factor"])
            if "original_max_position_embeddings" in rope:
                writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def close(writer: gguf.GGUFWriter) -> None:
    """Write what the writer has been told."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tokenizer_gguf(path: Path, arch: str, kind: str, tokens: list[str], **pairs: Any) -> Path:
    """A file with the numbers of a small model, a tokenizer and no tensors.

    Args:
        pairs: more of the tokenizer's, by the name behind ``tokenizer.ggml.``.
    """
    writer = gguf.GGUFWriter(path, arch)
    for key, value in (
        *(("context_length", 256), ("embedding_length", 64), ("block_count", 2)),
        *(("feed_forward_length", 128), ("attention.head_count", 4), ("attention.head_count_kv", 2)),
    ):
        writer.add_uint32(f"{arch}.{key}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", 1e-6)
    if arch == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window", 8)
    writer.add_tokenizer_model(kind)
    writer.add_token_list(tokens)
    for key, value in pairs.items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}
        add[type(value)](f"tokenizer.ggml.{key}", value)
    close(writer)
    return path
