"""What a folder's files say of a model. What it finds is recorded: hashing takes seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shoal.errors import BadWeights
from shoal.models.build.rope_scaling import context_factor
from shoal.models.checkpoint.checkpoint import Checkpoint, open_checkpoint
from shoal.models.checkpoint.digest import HashedModel, hash_model
from shoal.models.checkpoint.encoder_decoders import encoder_decoder
from shoal.models.checkpoint.encoders import OFFSET_POSITIONS
from shoal.models.checkpoint.llama_config import DEFAULTS, LlamaConfig, read_llama_config
from shoal.models.store.catalogue import find_entry
from shoal.models.store.generation import read_generation_config, sampling_defaults, token_ids
from shoal.models.store.local_model import LocalModel, SamplingDefaults
from shoal.models.text.codec import TextCodec
from shoal.progress import Progress
from shoal.types import ModelShape

if TYPE_CHECKING:
    from shoal.models.seam.config import PretrainedConfig

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


def describe(folder: Path, name: str, source: str, progress: Progress) -> tuple[LocalModel, HashedModel]:
    """Check a folder, hash it, and read what routing and clients need.

    Raises:
        UnknownModel, BadWeights, UnsupportedModel: see ``open_checkpoint``; or the config makes no sense.
    """
    checkpoint = open_checkpoint(folder)
    config = read_any_config(checkpoint)
    both = encoder_decoder(checkpoint.config)
    vocab_size = _positive(checkpoint, config, "vocab_size")
    end_tokens = _end_tokens(checkpoint, config, vocab_size)
    sampling = _sampling(folder, source)
    hashed = hash_model(checkpoint, progress)
    digest = hashed.manifest.digest
    sizes: Counter[str] = Counter()
    for entry in checkpoint.tensors.values():
        sizes[entry.dtype] += entry.size  # of a quantised one all its tensors'
    model = LocalModel(
        name=name,
        path=folder,
        digest=digest,
        shape=ModelShape(
            name=name,
            digest=digest,
            n_blocks=both.n_blocks if both else _positive(checkpoint, config, "num_hidden_layers"),
            hidden_size=_positive(checkpoint, config, "hidden_size"),
            context=both.context if both else context_of(config),
            vocab_size=vocab_size,
        ),
        size=sizes.total(),
        dtype=sizes.most_common(1)[0][0] if sizes else "F32",
        source=source,
        end_tokens=end_tokens,
        sampling=sampling,
    )
    return model, hashed


def read_any_config(checkpoint: Checkpoint) -> LlamaConfig | PretrainedConfig:
    """A checkpoint's config, by transformers only where it is not of Llama's shape.

    Raises:
        BadWeights, UnsupportedModel: see ``read_model_config`` and ``model_class``.
    """
    # What ends an answer is read apart, and more kindly.
    known = read_llama_config(dict(checkpoint.config) | {"eos_token_id": None})
    if known is not None:
        return known
    from shoal.models.build.skeleton import model_class, read_model_config  # noqa: PLC0415 - imports transformers

    config = read_model_config(checkpoint)
    if encoder_decoder(checkpoint.config) is None:
        model_class(config)
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
            value -= _before_first_position(config)
            return max(1, min(int(value * context_factor(config)), 2**31 - 1))
    return UNLIMITED


def _before_first_position(config: LlamaConfig | PretrainedConfig) -> int:
    """Positions in a model's table that come before that of the first token."""
    if getattr(config, "model_type", "") not in OFFSET_POSITIONS:
        return 0
    padding: object = getattr(config, "pad_token_id", None)
    return 1 + (padding if isinstance(padding, int) else 0)


def _end_tokens(
    checkpoint: Checkpoint, config: LlamaConfig | PretrainedConfig, vocab_size: int
) -> frozenset[int]:
    """What ends an answer: all that the model's files call its end.

    Config, generation config and tokenizer may each name another, and the chat template ends a turn with one
    that none of them names. What a type of model has by default counts where no config says anything.
    """
    generation: Mapping[str, Any] = read_generation_config(checkpoint.folder)
    said: list[object] = [generation.get("eos_token_id"), checkpoint.config.get("eos_token_id")]
    if said == [None, None] and "eos_token_id" not in checkpoint.config:
        known = isinstance(config, LlamaConfig)
        said = [DEFAULTS[config.model_type]["eos_token_id"] if known else config.eos_token_id]
    try:
        told = TextCodec.load(checkpoint.folder).end_tokens
    except BadWeights:
        told = frozenset[int]()  # a model may come without a tokenizer; it takes token ids then
    return token_ids(said, vocab_size) | token_ids(sorted(told), vocab_size)


def _sampling(folder: Path, source: str) -> SamplingDefaults:
    """What the model's makers recommend: in its folder, or as the catalogue has it from them."""
    found = sampling_defaults(read_generation_config(folder))
    kind, _, name = source.partition(":")
    entry = find_entry(name) if kind == "catalogue" else None
    return entry.sampling if entry is not None and found == SamplingDefaults() else found
