"""Tiny random checkpoints of many families, for tests.

Each is what ``save_pretrained`` writes, so tests meet the same files, names and conversions as users do.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB = 300
"""256 bytes, a few merges and the special tokens of :func:`write_test_tokenizer`."""
BLOCKS = 6
BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS: dict[str, Any] = {"head_dim": 16}
_ALL_HEADS: dict[str, Any] = {**BASE, "num_key_value_heads": 4}
_NO_GROUPS: dict[str, Any] = {k: v for k, v in BASE.items() if k != "num_key_value_heads"}
_ALTERNATING = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_GPT: dict[str, Any] = {
    "n_embd": 64,
    "n_layer": BLOCKS,
    "n_head": 4,
    "vocab_size": VOCAB,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_SPARSE: dict[str, Any] = {
    **BASE,
    **_HEADS,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}

FAMILIES: dict[str, Callable[[], Any]] = {
    # The one whose tokens are compared. Its head is its embedding: with weights as small as others have, it
    # would say the last token again, whatever its blocks do (tests/models/test_tiny_models.py).
    "llama": lambda: t.LlamaConfig(**BASE, tie_word_embeddings=True, initializer_range=0.2),
    "llama_untied": lambda: t.LlamaConfig(**BASE),
    "qwen3": lambda: t.Qwen3Config(**BASE, **_HEADS),
    "gpt2": lambda: t.GPT2Config(**_GPT),
    "gpt2_by_index": lambda: t.GPT2Config(**_GPT, scale_attn_by_inverse_layer_idx=True),
    "gemma": lambda: t.GemmaConfig(**BASE, **_HEADS),
    "gemma3": lambda: t.Gemma3TextConfig(**BASE, **_HEADS, sliding_window=8, layer_types=_ALTERNATING),
    "mixtral": lambda: t.MixtralConfig(**BASE, num_local_experts=4),
    "deepseek_v3": lambda: t.DeepseekV3Config(
        **_ALL_HEADS,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        first_k_dense_replace=3,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=16,
        qk_nope_head_dim=16,
        v_head_dim=16,
    ),
    "mistral": lambda: t.MistralConfig(**BASE, sliding_window=8),
    "mamba": lambda: t.MambaConfig(hidden_size=64, num_hidden_layers=BLOCKS, vocab_size=VOCAB, state_size=8),
    "gpt_oss": lambda: t.GptOssConfig(
        **BASE, **_HEADS, num_local_experts=4, num_experts_per_tok=2, sliding_window=8
    ),
    "qwen2": lambda: t.Qwen2Config(**BASE, use_sliding_window=True, sliding_window=8, max_window_layers=3),
    "qwen2_moe": lambda: t.Qwen2MoeConfig(
        **BASE,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=64,
    ),
    "qwen3_moe": lambda: t.Qwen3MoeConfig(**_SPARSE, mlp_only_layers=[1, 4]),
    "gemma2": lambda: t.Gemma2Config(**BASE, **_HEADS, sliding_window=8),
    "phi3": lambda: t.Phi3Config(**BASE),
    "phimoe": lambda: t.PhimoeConfig(**BASE, num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "olmo": lambda: t.OlmoConfig(**BASE),
    "nanochat": lambda: t.NanoChatConfig(**BASE),
    "olmo2": lambda: t.Olmo2Config(**BASE),
    "smollm3": lambda: t.SmolLM3Config(**BASE),
    "neox": lambda: t.GPTNeoXConfig(**_NO_GROUPS),
    "granite": lambda: t.GraniteConfig(
        **BASE,
        embedding_multiplier=12.0,
        logits_scaling=8.0,
        residual_multiplier=0.22,
        attention_multiplier=0.1,
    ),
    "cohere": lambda: t.CohereConfig(**BASE, logit_scale=0.25),
    "cohere2": lambda: t.Cohere2Config(**BASE, sliding_window=8),
    "phi": lambda: t.PhiConfig(**BASE),
    "falcon": lambda: t.FalconConfig(**_NO_GROUPS, alibi=False),
    "falcon_alibi": lambda: t.FalconConfig(**_NO_GROUPS, alibi=True),
    "opt": lambda: t.OPTConfig(
        hidden_size=64,
        num_hidden_layers=BLOCKS,
        ffn_dim=128,
        num_attention_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        word_embed_proj_dim=32,
        do_layer_norm_before=False,
    ),
    "bloom": lambda: t.BloomConfig(hidden_size=64, n_layer=BLOCKS, n_head=4, vocab_size=VOCAB),
    "stablelm": lambda: t.StableLmConfig(**BASE),
    "starcoder2": lambda: t.Starcoder2Config(**BASE, sliding_window=8),
    "glm4": lambda: t.Glm4Config(**BASE, **_HEADS),
    "llama4": lambda: t.Llama4TextConfig(
        **BASE,
        **_HEADS,
        num_local_experts=4,
        intermediate_size_mlp=128,
        interleave_moe_layer_step=2,
        attention_chunk_size=8,
        no_rope_layer_interval=3,
    ),
    "qwen3_next": lambda: t.Qwen3NextConfig(
        **_SPARSE,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=16,
        linear_value_head_dim=16,
        shared_expert_intermediate_size=32,
        layer_types=["linear_attention", "linear_attention", "full_attention"] * 2,
    ),
    "jamba": lambda: t.JambaConfig(
        **BASE,
        num_experts=4,
        num_experts_per_tok=2,
        attn_layer_period=3,
        attn_layer_offset=1,
        mamba_d_state=8,
        mamba_dt_rank=8,
    ),
    "mamba2": lambda: t.Mamba2Config(
        hidden_size=64,
        num_hidden_layers=BLOCKS,
        vocab_size=VOCAB,
        state_size=8,
        num_heads=8,
        head_dim=16,
        n_groups=1,
        chunk_size=8,
    ),
    "recurrent_gemma": lambda: t.RecurrentGemmaConfig(**BASE, attention_window_size=8),
    "mpt": lambda: t.MptConfig(d_model=64, n_heads=4, n_layers=BLOCKS, vocab_size=VOCAB),
    "gptj": lambda: t.GPTJConfig(**_GPT, rotary_dim=8),
    "gpt_neo": lambda: t.GPTNeoConfig(
        hidden_size=64,
        num_layers=BLOCKS,
        num_heads=4,
        vocab_size=VOCAB,
        max_position_embeddings=256,
        attention_types=[[["global", "local"], BLOCKS // 2]],
        window_size=8,
    ),
    "ernie4_5_moe": lambda: t.Ernie4_5_MoeConfig(
        **BASE,
        moe_num_experts=4,
        moe_k=2,
        moe_intermediate_size=32,
        moe_layer_start_index=2,
        moe_layer_interval=2,
    ),
    "bamba": lambda: t.BambaConfig(
        **BASE,
        attn_layer_indices=[1, 4],
        mamba_n_heads=8,
        mamba_d_head=16,
        mamba_d_state=8,
        mamba_n_groups=1,
        mamba_chunk_size=8,
    ),
    "nemotron": lambda: t.NemotronConfig(**BASE),
    "olmoe": lambda: t.OlmoeConfig(**BASE, num_experts=4, num_experts_per_tok=2),
    "exaone4": lambda: t.Exaone4Config(**BASE, sliding_window=8, sliding_window_pattern=3),
    "lfm2": lambda: t.Lfm2Config(**BASE, full_attn_idxs=[2, 4]),
    "hyperclovax": lambda: t.HyperCLOVAXConfig(**BASE, embedding_multiplier=10.0),
    # These two cannot be cut, and must be found out.
    "gemma3n": lambda: t.Gemma3nTextConfig(
        **BASE,
        **_HEADS,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=16,
        num_kv_shared_layers=0,
        laurel_rank=8,
        altup_num_inputs=2,
        layer_types=_ALTERNATING,
        activation_sparsity_pattern=[0.0] * BLOCKS,
    ),
    "zamba2": lambda: t.Zamba2Config(
        **BASE,
        layers_block_type=["mamba", "hybrid"] * 3,
        mamba_d_state=8,
        n_mamba_heads=8,
        mamba_ngroups=1,
        chunk_size=8,
        num_mem_blocks=1,
    ),
}
"""A config of every family, by a short name."""


_written: dict[tuple[str, ...], dict[str, bytes]] = {}
"""The files of small checkpoints that this process has written, by how: the same again takes a tenth."""
_MOST_WRITTEN = 32
_MOST_BYTES = 2 << 20


def write_checkpoint(
    folder: Path, family: str = "llama", *, seed: int = 0, shard: str = "5GB", **changes: Any
) -> Path:
    """Write a random checkpoint of ``family`` into ``folder``, in float32, with a tokenizer.

    Args:
        shard: largest size of one safetensors file, for example ``"100KB"``.
        changes: fields of the config to set.
    """
    how = (family, str(seed), shard, repr(sorted(changes.items())))
    fresh = not folder.exists()
    if fresh and how in _written:
        folder.mkdir(parents=True)
        for name, data in _written[how].items():
            (folder / name).write_bytes(data)
        return folder
    _write(folder, family, seed, shard, changes)
    if fresh and len(_written) < _MOST_WRITTEN:
        files = list(folder.iterdir())
        if sum(file.stat().st_size for file in files) <= _MOST_BYTES:
            _written[how] = {file.name: file.read_bytes() for file in files}
    return folder


def _write(folder: Path, family: str, seed: int, shard: str, changes: dict[str, Any]) -> None:
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        # Norms begin as ones and biases as zeros, with which a span that forgot them would still be right.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder, max_shard_size=shard)
    write_test_tokenizer(folder)


def write_test_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer with a chat template: every text has tokens, every token below 300 has text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("\u0120", "w")]
    symbols = ["<unk>", "<s>", "</s>", *alphabet, *(a + b for a, b in merges)]
    symbols += [f"<extra{i}>" for i in range(VOCAB - len(symbols))]
    bpe = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tokenizer = t.PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder)
