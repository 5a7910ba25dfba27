"""How the next token is chosen from logits. The processors are those of transformers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import cast

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shoal.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Greedy by default; a ``temperature`` above 0 samples."""

    temperature: float = 0.0
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together have this probability."""
    min_p: float = 0.0
    """Keep tokens at least this likely, relative to the likeliest."""
    repetition_penalty: float = 1.0
    """Divide the score of tokens that occurred by this (Keskar et al. 2019)."""
    seed: int | None = None
    """The same seed gives the same tokens."""

    def __post_init__(self) -> None:
        bounds = (
            (0 <= self.temperature <= 100, "temperature", "between 0 and 100"),
            (self.top_k >= 0, "top_k", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min_p", "between 0 and 1"),
            (0 < self.repetition_penalty <= 100, "repetition_penalty", "above 0 and at most 100"),
            (self.seed is None or 0 <= self.seed < 1 << 63, "seed", "0 or more"),
        )
        for good, name, needed in bounds:
            if not good:
                raise UsageError(f"{name} must be {needed}, not {getattr(self, name)}")


class Sampler:
    """Chooses tokens by one :class:`Sampling`; holds the random state of one answer."""

    def __init__(self, sampling: Sampling) -> None:
        self._greedy = sampling.temperature == 0
        self._random = torch.Generator()
        self._random.manual_seed(secrets.randbits(63) if sampling.seed is None else sampling.seed)
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
            if sampling.min_p:
                self._processors.append(MinPLogitsWarper(sampling.min_p))

    def choose(self, logits: torch.Tensor, token_ids: list[int]) -> int:
        """The next token.

        Args:
            logits: ``[vocab]`` for the position after the last of ``token_ids``.
            token_ids: the prompt and all that was generated.
        """
        scores = logits.float().unsqueeze(0)
        if self._processors:
            seen = cast(torch.LongTensor, torch.tensor([token_ids]))
            scores: torch.Tensor = self._processors(seen, cast(torch.FloatTensor, scores))
        if self._greedy:
            return int(scores[0].argmax())
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities[0], 1, generator=self._random))
