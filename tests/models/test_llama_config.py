"""Configs read without transformers say what transformers' own classes say, or nothing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from shoal.models.build.loader import REFUSED
from shoal.models.checkpoint.llama_config import DEFAULTS, LlamaConfig, read_llama_config

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 300,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rms_norm_eps": 1e-5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}

# What is found in the field, each with what makes it differ from the others.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in DEFAULTS),  # nothing but the type
    *((family, SMALL) for family in DEFAULTS),
    *((family, SMALL | {"rope_theta": 500000, "torch_dtype": "bfloat16"}) for family in DEFAULTS),
    *((family, SMALL | {"rope_theta": 12345.5, "rope_scaling": None}) for family in DEFAULTS),
    *((family, SMALL | {"eos_token_id": [7, 8, 9], "dtype": "float16"}) for family in DEFAULTS),
    *((family, SMALL | {"eos_token_id": None, "head_dim": 32}) for family in DEFAULTS),
    *((family, SMALL | {"attention_bias": True, "tie_word_embeddings": False}) for family in DEFAULTS),
    *(
        (family, SMALL | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e5}})
        for family in DEFAULTS
        if family != "gemma3_text"
    ),
    ("llama", SMALL | {"num_key_value_heads": None, "head_dim": None, "mlp_bias": True}),
    ("llama", SMALL | {"rope_scaling": LLAMA3, "rope_theta": 500000.0}),
    ("llama", SMALL | {"rope_parameters": LLAMA3 | {"rope_theta": 500000.0}}),
    ("llama", SMALL | {"rope_scaling": {"type": "linear", "factor": 2}}),
    ("llama", SMALL | {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {}}),
    ("llama", SMALL | {"rope_theta": 7.0, "rope_parameters": {"rope_type": "default", "rope_theta": 1e5}}),
    ("mistral", SMALL | {"sliding_window": None}),
    ("mistral", SMALL | {"sliding_window": 8}),
    ("qwen2", SMALL | {"sliding_window": 8, "use_sliding_window": False, "max_window_layers": 3}),
    ("qwen2", SMALL | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}),
    ("qwen2", SMALL | {"rope_scaling": YARN}),
    ("qwen2", SMALL | {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ("qwen3", SMALL | {"rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "truncate": False}}),
    ("qwen3", SMALL | {"rope_scaling": YARN | {"attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2}}),
    ("qwen3", SMALL | {"layer_types": ["full_attention"] * 6}),
    ("phi3", SMALL | {"partial_rotary_factor": 0.5}),
    ("phi3", SMALL | {"sliding_window": 8, "original_max_position_embeddings": 4096}),
    ("smollm3", SMALL | {"no_rope_layer_interval": 3}),
    ("smollm3", SMALL | {"no_rope_layers": [1, 1, 0, 1, 0, 1]}),
    ("smollm3", SMALL | {"use_sliding_window": True, "sliding_window": 8}),
    ("gemma", SMALL | {"hidden_act": "gelu"}),
    ("gemma", SMALL | {"hidden_act": "gelu", "hidden_activation": "gelu_pytorch_tanh"}),
    ("gemma3_text", SMALL | {"sliding_window": 8, "sliding_window_pattern": 3}),
    ("gemma3_text", SMALL | {"sliding_window": 8, "layer_types": ["full_attention"] * 6}),
    ("gemma3_text", SMALL | {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "query_pre_attn_scalar": 168}),
    ("gemma3_text", SMALL | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    (
        "gemma3_text",
        SMALL
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    (
        "granite",
        SMALL
        | {
            "embedding_multiplier": 12,
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.015625,
        },
    ),
]
NAMES = [f"{family}-{index}" for index, (family, _) in enumerate(VARIANTS)]


def differences(ours: LlamaConfig, theirs: Any) -> dict[str, tuple[object, object]]:
    """By field, what we say and what transformers' config says."""
    sliding = getattr(theirs, "sliding_window", None)
    kinds = getattr(theirs, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if sliding else "full_attention"] * theirs.num_hidden_layers
    head_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    ends = theirs.eos_token_id
    expected: dict[str, object] = {
        name: getattr(theirs, name)
        for name in (
            *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
            *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
            "tie_word_embeddings",
        )
    }
    expected |= {
        "head_dim": head_dim,
        "hidden_act": theirs.hidden_activation if theirs.model_type == "gemma3_text" else theirs.hidden_act,
        "eos_token_ids": () if ends is None else tuple(ends) if isinstance(ends, list) else (ends,),
        "dtype": None if theirs.dtype is None else str(theirs.dtype).removeprefix("torch."),
        "attention_bias": getattr(theirs, "attention_bias", ours.attention_bias),
        "mlp_bias": getattr(theirs, "mlp_bias", ours.mlp_bias),
        "layer_types": tuple(kinds),
        "no_rope_layers": tuple(map(bool, getattr(theirs, "no_rope_layers", ours.no_rope_layers))),
        "sliding_window": sliding if "sliding_attention" in kinds else ours.sliding_window,
        "query_pre_attn_scalar": getattr(theirs, "query_pre_attn_scalar", ours.query_pre_attn_scalar),
        "embedding_multiplier": getattr(theirs, "embedding_multiplier", 1.0),
        "logits_scaling": getattr(theirs, "logits_scaling", 1.0),
        "residual_multiplier": getattr(theirs, "residual_multiplier", 1.0),
        "attention_multiplier": getattr(theirs, "attention_multiplier", None),
        "ropes": set(kinds),
    }
    found: dict[str, object] = {name: getattr(ours, name) for name in expected} | {"ropes": set(ours.ropes)}
    for kind, rope in ours.ropes.items():
        nested = theirs.rope_parameters.get(kind)
        parameters = theirs.rope_parameters if nested is None else nested
        for name in ("rope_type", "rope_theta", *(parameters.keys() - {"type", "partial_rotary_factor"})):
            found[f"{kind}.{name}"] = getattr(rope, name)
            expected[f"{kind}.{name}"] = parameters[name]
        found[f"{kind}.rotary"] = rope.rotary
        expected[f"{kind}.rotary"] = int(head_dim * parameters.get("partial_rotary_factor", 1.0))
    return {name: (found[name], expected[name]) for name in expected if found[name] != expected[name]}


def by_transformers(family: str, config: dict[str, Any]) -> Any:
    """Transformers' config, or ``None`` when it refuses."""
    try:
        return AutoConfig.for_model(family, **copy.deepcopy(config))
    except (*REFUSED, OSError):
        return None


@pytest.mark.parametrize(("family", "config"), VARIANTS, ids=NAMES)
def test_it_says_what_transformers_says(family: str, config: dict[str, Any]) -> None:
    ours = read_llama_config(config | {"model_type": family})
    theirs = by_transformers(family, config)
    assert ours is not None
    assert theirs is not None
    assert not differences(ours, theirs)


@pytest.mark.parametrize("family", DEFAULTS)
def test_what_transformers_saves_reads_the_same(family: str, tmp_path: Path) -> None:
    by_transformers(family, SMALL).save_pretrained(tmp_path)
    ours = read_llama_config(json.loads((tmp_path / "config.json").read_text()))
    assert ours is not None
    assert not differences(ours, AutoConfig.from_pretrained(tmp_path))


@pytest.mark.parametrize("family", DEFAULTS)
def test_any_field_left_out_or_strange_is_read_as_transformers_does_or_not_at_all(family: str) -> None:
    sliding = {"sliding_window": 8} if family not in ("llama", "gemma", "granite") else {}
    scaled = family not in ("phi3", "gemma3_text")
    scaling = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}} if scaled else {}
    whole = json.loads(json.dumps(by_transformers(family, SMALL | sliding).to_dict()))
    whole |= {"rope_theta": 1e5, "partial_rotary_factor": 1.0, "head_dim": 16, "layer_types": None, **scaling}
    whole |= {"no_rope_layer_interval": 2, "use_sliding_window": True, "sliding_window_pattern": 2}
    understood = 0
    strange = (None, True, False, 0, 1, -1, 3, 8, 0.5, 1e300, "x", "full_attention", [], [1], {}, {"a": 1})
    for name in whole:
        rest = {key: value for key, value in whole.items() if key != name}
        for config in (rest, *(rest | {name: value} for value in strange)):
            ours = read_llama_config(config | {"model_type": family})
            if ours is None:
                continue
            theirs = by_transformers(family, {k: v for k, v in config.items() if k != "model_type"})
            assert theirs is not None, (name, config.get(name))
            assert not differences(ours, theirs), (name, config.get(name))
            understood += 1
    assert understood > 100


@pytest.mark.parametrize(
    "strange",
    [
        {"model_type": "gpt2"},
        {"model_type": "mixtral"},
        {"model_type": None},
        {"num_hidden_layers": "six"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": True},
        {"hidden_size": 0},
        {"hidden_size": 66},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 3},
        {"head_dim": 15},
        {"rms_norm_eps": "small"},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": None},
        {"rope_theta": float("inf")},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0, "surprise": 1}},
        {"rope_scaling": [1]},
        {"partial_rotary_factor": 0.5},
        {"sliding_window": 8},
        {"layer_types": ["full_attention"] * 6},
        {"text_config": {}},
        {"per_layer_config": {"0": {"num_key_value_heads": 1}}},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"is_encoder_decoder": True},
        {"torch_dtype": "float8_e4m3fn"},
        {"eos_token_id": "</s>"},
        {"tie_word_embeddings": "yes"},
    ],
    ids=str,
)
def test_what_is_not_fully_understood_is_left_to_transformers(strange: dict[str, Any]) -> None:
    config = SMALL | {"model_type": "llama"}
    assert read_llama_config(config) is not None
    assert read_llama_config(config | strange) is None
