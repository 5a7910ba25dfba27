"""Random models with an encoder and a decoder, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t

from shoal.testing.checkpoints import VOCAB, write_test_tokenizer
from shoal.testing.encoders import surround

_END = 2
_T5: dict[str, Any] = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 6,
    "num_decoder_layers": 6,
    "num_heads": 4,
    "n_positions": 96,
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "eos_token_id": _END,
    "decoder_start_token_id": 0,
}
_GATED: dict[str, Any] = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
TEXT_FAMILIES: dict[str, Callable[[], Any]] = {
    "t5": lambda: t.T5Config(**_T5),
    "flan": lambda: t.T5Config(**_T5, **_GATED),
    "mt5": lambda: t.MT5Config(**_T5, **_GATED),
}
"""T5 in its first version, in its second, and in many languages; as deep as T5-small, but narrow."""


def write_text_to_text(folder: Path, family: str = "t5") -> Path:
    """Write a random model that reads a text and writes another; its tokenizer puts ``</s>`` behind texts."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = t.AutoModelForSeq2SeqLM.from_config(TEXT_FAMILIES[family](), dtype=torch.float32)
        _write(model, folder, 3)
    write_test_tokenizer(folder)
    surround(folder, before="", behind="</s>")
    return folder


START, SILENCE, NO_TIMESTAMPS = 280, 286, 287
LANGUAGES = {"<|en|>": 281, "<|de|>": 282, "<|fr|>": 283}
TASKS = {"transcribe": 284, "translate": 285}
SPECIAL = {START: "<|startoftranscript|>", SILENCE: "<|nospeech|>", NO_TIMESTAMPS: "<|notimestamps|>"}


def write_speech_to_text(folder: Path, *, multilingual: bool = True, **sizes: Any) -> Path:
    """Write a random model of Whisper's: as deep as Whisper-tiny and with its 1,500 rows, but narrow.

    Args:
        sizes: fields of the config.
    """
    config: dict[str, Any] = {
        "d_model": 64,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 128,
        "decoder_ffn_dim": 128,
        "vocab_size": VOCAB,
        "max_target_positions": 64,
        "decoder_start_token_id": START,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": _END,
    }
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = t.WhisperConfig(**config | sizes)
        model: Any = t.AutoModelForSpeechSeq2Seq.from_config(made, dtype=torch.float32)
        told: dict[str, Any] = {
            "decoder_start_token_id": START,
            "eos_token_id": _END,
            "pad_token_id": 0,
            "max_length": 24,
            "is_multilingual": multilingual,
            "no_timestamps_token_id": NO_TIMESTAMPS,
            "suppress_tokens": [20, 21, 22],
            "begin_suppress_tokens": [23, _END],
        }
        if multilingual:
            told |= {"lang_to_id": LANGUAGES, "task_to_id": TASKS}
        model.generation_config = t.GenerationConfig(**told)
        _write(model, folder, 14)
    write_test_tokenizer(folder)
    _name_tokens(folder)
    return folder


def _write(model: Any, folder: Path, scale: float) -> None:
    """Norms begin as ones and biases as zeros, with which a span that forgot them would still be right; and
    where blocks add little the model says the same token for ever."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif parameter.ndim == 2 and "embed" not in name and "shared" not in name:
                parameter.mul_(scale)
    model.save_pretrained(folder)


def _name_tokens(folder: Path) -> None:
    """Give a speech model's special tokens their ids in a test's tokenizer, over some without meaning."""
    path = folder / "tokenizer.json"
    fields = json.loads(path.read_text())
    names = SPECIAL | {number: name for name, number in LANGUAGES.items()}
    names |= {number: f"<|{name}|>" for name, number in TASKS.items()}
    vocabulary = {number: name for name, number in fields["model"]["vocab"].items()} | names
    fields["model"]["vocab"] = {name: number for number, name in sorted(vocabulary.items())}
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    fields["added_tokens"] += [
        {"id": number, "content": name, "special": True, **plain} for number, name in sorted(names.items())
    ]
    path.write_text(json.dumps(fields))
