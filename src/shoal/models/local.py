"""A model on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shoal.types import Digest, ModelShape


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A folder that transformers loads, and what is known of it."""

    name: str
    path: Path
    """A Hugging Face folder: config, safetensors, tokenizer."""
    digest: Digest
    shape: ModelShape
    size: int
    """Bytes of the tensors as stored."""
    dtype: str
    """What most of those bytes are, as safetensors names it, for example ``F32``."""
    source: str
    """Where it came from: ``catalogue:…``, ``folder:…``, ``gguf:…`` or ``hub:…``."""
    end_tokens: frozenset[int] = frozenset()
    """Token ids that end an answer."""
