"""What a model's files say of its embeddings, in sentence-transformers' words.

``modules.json`` lists what a text goes through: the transformer, how its hidden states are pooled, and
whether the vector is brought to length 1. Anything else that it may list is refused, and not left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.errors import BadWeights, UsageError
from shoal.models.checkpoint.checkpoint import CONFIG
from shoal.models.checkpoint.encoders import is_encoder
from shoal.models.checkpoint.json_file import read_json, read_object
from shoal.models.checkpoint.manifest import MODULES, is_text_file
from shoal.models.embedding.pooling import Pooling
from shoal.models.store.local_model import LocalModel

POOLINGS: Mapping[str, Pooling] = {
    "cls": "cls",
    "lasttoken": "last",
    "mean": "mean",
    "max": "max",
    "weightedmean": "weighted_mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
}
"""Names of ``pooling_mode``, and what they are here."""
FLAGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}
"""The same as older files have it: a flag for each."""
LIMITS = "sentence_bert_config.json"


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """How a model's embeddings are made."""

    encoder: bool
    """Whether the model is an encoder; else it is a decoder, whose last token has seen all others."""
    pooling: Pooling
    normalized: bool
    """Whether they have length 1."""
    max_tokens: int
    """Of one text, its special tokens among them."""
    lower_case: bool = False
    """Whether texts are brought to lower case before the tokenizer has them."""


def encodes_only(local: LocalModel) -> bool:
    """Whether a model is an encoder: it gives embeddings and generates no text. Raises as ``read_object``."""
    return is_encoder(read_object(local.path / "config.json", CONFIG))


def no_text_of(local: LocalModel) -> UsageError:
    """What is told of an encoder that is asked for text."""
    return UsageError(
        f"{local.name} is an encoder: it gives embeddings and generates no text",
        check="ask it for embeddings, or choose another model",
        next_command=f"shoal embed {local.name} 'Some text'",
    )


def embedding_settings(local: LocalModel) -> EmbeddingSettings:
    """How a model's embeddings are made.

    An encoder without ``modules.json`` gives the mean of its last hidden states, as it does in
    sentence-transformers.

    Raises:
        UsageError: the model gives none: it is a decoder, and its files do not say how.
        BadWeights: its files make no sense, or ask for what is not supported.
    """
    encoder = encodes_only(local)
    limits = _limits(local)
    longest = limits.get("max_seq_length")
    context = local.shape.context
    tokens = min(context, longest) if isinstance(longest, int) and longest > 0 else context
    lower_case = limits.get("do_lower_case") is True
    if not (local.path / MODULES).is_file():
        if encoder:
            return EmbeddingSettings(encoder, "mean", False, tokens, lower_case)
        raise UsageError(
            f"{local.name} gives no embeddings: it was made to generate text, and has no {MODULES}",
            check="choose a model that was made for embeddings",
        )
    pooling, normalized = _modules(local.path)
    return EmbeddingSettings(encoder, pooling, normalized, tokens, lower_case)


def _limits(local: LocalModel) -> Mapping[str, Any]:
    file = local.path / LIMITS
    return read_object(file, CONFIG) if file.is_file() else {}


def _modules(folder: Path) -> tuple[Pooling, bool]:
    """The pooling, and whether vectors are brought to length 1."""
    listed = read_json(folder / MODULES, CONFIG)
    modules = cast("list[object]", listed) if isinstance(listed, list) else []
    pooling: Pooling | None = None
    normalized = False
    for number, module in enumerate(modules):
        fields = cast("dict[str, Any]", module) if isinstance(module, dict) else {}
        kind = str(fields.get("type")).rpartition(".")[2]
        if kind == "Transformer" and number == 0 and fields.get("path") in ("", None):
            continue
        if kind == "Pooling" and number == 1:
            pooling = _pooling(folder, str(fields.get("path")))
        elif kind == "Normalize" and pooling is not None and number == len(modules) - 1:
            normalized = True
        else:
            raise _unsupported(folder, f"it lists {kind[:40]!r} in place {number}")
    if pooling is None:
        raise _unsupported(folder, "it lists no Pooling")
    return pooling, normalized


def _pooling(folder: Path, path: str) -> Pooling:
    name = f"{path}/config.json"
    if not is_text_file(name) or not (folder / name).is_file():
        raise _unsupported(folder, f"it has its Pooling in {path[:40]!r}, which is not there")
    fields = read_object(folder / name, CONFIG)
    mode = fields.get("pooling_mode")
    found: set[Pooling] = {pooling for flag, pooling in FLAGS.items() if fields.get(flag) is True}
    if isinstance(mode, str) and mode in POOLINGS:
        found.add(POOLINGS[mode])
    if len(found) != 1:
        raise _unsupported(folder, f"{name} asks for {len(found)} ways of pooling, and one is supported")
    return found.pop()


def _unsupported(folder: Path, what: str) -> BadWeights:
    return BadWeights(
        f"{folder / MODULES}: {what}",
        check="choose a model whose text goes through Transformer, Pooling and perhaps Normalize alone",
    )
