"""What a folder's config says of a model.

Transformers, which takes seconds to import, is asked only for models that our kernels do not run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from shoal.errors import BadWeights
from shoal.models.checkpoint import Checkpoint, open_checkpoint, read_object
from shoal.models.digest import compute_digest
from shoal.models.llama_config import LlamaConfig, read_llama_config
from shoal.models.local import LocalModel
from shoal.models.progress import Progress
from shoal.models.rope_scaling import context_factor
from shoal.types import Digest, ModelShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Under these names configs say how long a sequence may be.
CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
    "n_ctx",
)
UNLIMITED = 1 << 20
"""Tokens; for models without positions, whose configs name no limit."""


def describe(folder: Path, name: str, source: str, progress: Progress) -> LocalModel:
    """Check a folder, hash it, and read what routing and clients need.

    Raises:
        UnknownModel, BadWeights, UnsupportedModel: see ``open_checkpoint``; or the config makes no sense.
    """
    checkpoint = open_checkpoint(folder)
    config = read_llama_config(checkpoint.config) or _through_transformers(checkpoint)
    shape = ModelShape(
        name=name,
        digest=Digest(""),
        n_blocks=_positive(checkpoint, config, "num_hidden_layers"),
        hidden_size=_positive(checkpoint, config, "hidden_size"),
        context=context_of(config),
        vocab_size=_positive(checkpoint, config, "vocab_size"),
    )
    digest = compute_digest(checkpoint, progress)
    sizes: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        sizes[entry.dtype] += entry.size
    return LocalModel(
        name=name,
        path=folder,
        digest=digest,
        shape=replace(shape, digest=digest),
        size=sizes.total(),
        dtype=sizes.most_common(1)[0][0] if sizes else "F32",
        source=source,
        end_tokens=_end_tokens(folder, config),
    )


def _through_transformers(checkpoint: Checkpoint) -> PretrainedConfig:
    from shoal.models.hollow import causal_class, read_model_config  # noqa: PLC0415 - imports transformers

    config = read_model_config(checkpoint)
    causal_class(config)
    return config


def _positive(checkpoint: Checkpoint, config: LlamaConfig | PretrainedConfig, field: str) -> int:
    value: object = getattr(config, field, None)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise BadWeights(
            f"{checkpoint.folder / 'config.json'}: {field} is {str(value)[:40]}, not a whole number above 0"
        )
    return value


def context_of(config: LlamaConfig | PretrainedConfig) -> int:
    """The longest session, in tokens, that a model was made for."""
    for field in CONTEXT:
        value: object = getattr(config, field, None)
        if isinstance(value, int) and value > 0:
            return min(int(value * context_factor(config)), 2**31 - 1)
    return UNLIMITED


def _end_tokens(folder: Path, config: LlamaConfig | PretrainedConfig) -> frozenset[int]:
    """What ends an answer; the generation config, where there is one, says it in the config's place."""
    path = folder / "generation_config.json"
    found: Any = read_object(path).get("eos_token_id") if path.is_file() else None
    if found is None and isinstance(config, LlamaConfig):
        return frozenset(config.eos_token_ids)
    found = found if found is not None else getattr(config, "eos_token_id", None)
    ids = cast("list[object]", found if isinstance(found, list) else [found])
    return frozenset(i for i in ids if isinstance(i, int))
