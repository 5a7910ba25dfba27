"""A model on this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shoal.models.adapters.soft_prompt import SoftPrompt
from shoal.types import Digest, ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingDefaults:
    """How a model's makers recommend to sample from it; ``None`` where they say nothing.

    The fields are those of :class:`shoal.client.sampling.Sampling`.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A checkpoint's folder, and what is known of it."""

    name: str
    path: Path
    """Config, tokenizer, and weights: safetensors, or GGUF files with an index of them."""
    digest: Digest
    shape: ModelShape
    size: int
    """Bytes of the tensors as stored."""
    dtype: str
    """What most of those bytes are, as their file names it, for example ``F32`` or ``Q4_1``."""
    source: str
    """Where it came from: ``catalogue:…``, ``folder:…``, ``gguf:…`` or ``hub:…``."""
    end_tokens: frozenset[int] = frozenset()
    """Token ids that end an answer."""
    sampling: SamplingDefaults = SamplingDefaults()
    """Used where neither a request nor a command says how to sample."""
    soft_prompt: SoftPrompt | None = None
    """What this client puts before each prompt."""

    @property
    def virtual_tokens(self) -> int:
        """Positions that a soft prompt takes before the first token of a prompt."""
        return 0 if self.soft_prompt is None else self.soft_prompt.tokens

    @property
    def bare(self) -> LocalModel:
        """The same without a soft prompt, with all of its context."""
        if self.soft_prompt is None:
            return self
        context = self.shape.context + self.soft_prompt.tokens
        name = self.name.removesuffix(f":{self.soft_prompt.name}")
        return replace(self, name=name, shape=replace(self.shape, context=context), soft_prompt=None)
