"""A tiny Llama as a GGUF file, as llama.cpp's converter would write it."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from shoal.testing.checkpoints import BASE, BLOCKS, write_checkpoint

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
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, block, rest = name.split(".", 3)
    return f"blk.{block}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(name: str, array: np.ndarray) -> np.ndarray:
    """llama.cpp rotates pairs of neighbours, transformers the halves: the converter reorders the rows."""
    heads = {"q_proj": 4, "k_proj": 2}.get(name.split(".")[-2])
    if heads is None:
        return array
    rows = array.shape[0] // heads // 2
    return array.reshape(heads, 2, rows, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    import json

    from transformers import AutoTokenizer

    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    kinds = [gguf.TokenType.CONTROL if i < 3 else gguf.TokenType.NORMAL for i in range(len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(AutoTokenizer.from_pretrained(folder).chat_template)
