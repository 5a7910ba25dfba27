"""Tiny random encoders, and what sentence-transformers writes beside a model, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as t
from tokenizers import Tokenizer, processors

from shoal.testing.checkpoints import BLOCKS, VOCAB, write_test_tokenizer

_BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": VOCAB,
    "max_position_embeddings": 130,
    "pad_token_id": 0,
}
_OFFSET: dict[str, Any] = _BASE | {"type_vocab_size": 1}

ENCODER_FAMILIES: dict[str, Callable[[], Any]] = {
    "bert": lambda: t.BertConfig(**_BASE),
    "camembert": lambda: t.CamembertConfig(**_OFFSET),
    "distilbert": lambda: t.DistilBertConfig(
        dim=64,
        n_layers=BLOCKS,
        n_heads=4,
        hidden_dim=128,
        vocab_size=VOCAB,
        max_position_embeddings=130,
    ),
    "electra": lambda: t.ElectraConfig(**_BASE, embedding_size=32),
    "modernbert": lambda: t.ModernBertConfig(
        **_BASE, local_attention=16, layer_types=["full_attention", *["sliding_attention"] * 2] * 2
    ),
    "mpnet": lambda: t.MPNetConfig(**_OFFSET),
    "roberta": lambda: t.RobertaConfig(**_OFFSET),
    "xlm-roberta": lambda: t.XLMRobertaConfig(**_OFFSET),
}
"""A config of every family of encoders that is served, by its model type."""


def write_encoder(folder: Path, family: str = "bert", *, whole: bool = False) -> Path:
    """Write a random encoder, in float32; its tokenizer puts ``<s>`` and ``</s>`` round each text.

    Args:
        whole: with the head that it was trained with, as many are published; its tensors have other names.
    """
    kind = t.AutoModelForMaskedLM if whole else t.AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind.from_config(ENCODER_FAMILIES[family](), dtype=torch.float32)
        # Norms begin as ones and biases as zeros, with which a span that forgot them would still be right.
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    write_test_tokenizer(folder)
    surround(folder)
    return folder


def surround(folder: Path, before: str = "<s>", behind: str = "</s>") -> None:
    """Have a test's tokenizer put special tokens before and behind each text."""
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    pieces = [f"{token}" for token in (before, "$A", behind) if token]
    ids = [(token, tokenizer.token_to_id(token)) for token in (before, behind) if token]
    tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(pieces), special_tokens=ids)
    tokenizer.save(path)


def write_pooling(folder: Path, *modes: str, normalize: bool = False, **limits: Any) -> None:
    """Write the files of sentence-transformers beside a model.

    Args:
        modes: the flags of its Pooling that are set, as ``mean_tokens``.
        limits: fields of ``sentence_bert_config.json``.
    """
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), *([("2_Normalize", "Normalize")] * normalize)]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    flags = {f"pooling_mode_{name}": name in modes for name in {"cls_token", "mean_tokens", *modes}}
    (folder / "1_Pooling/config.json").write_text(json.dumps({"word_embedding_dimension": 64, **flags}))
    if limits:
        (folder / "sentence_bert_config.json").write_text(json.dumps(limits))
