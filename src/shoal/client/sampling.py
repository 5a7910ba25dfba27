"""How the next token is chosen from logits. The processors are those of transformers."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from shoal.client.scores import TokenScore, score
from shoal.errors import UsageError

MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
REPETITION = (0.01, 100.0)
"""Bounds of the repetition penalty: beyond, scores overflow."""
COLDEST = 1e-5
"""A temperature below this is taken for 0: the likeliest token is certain then, and scores would overflow."""


class Constraint(Protocol):
    """What an answer may say next: the state of a grammar. For one thread at a time."""

    def allowed(self, vocab: int) -> torch.Tensor:
        """Which tokens may follow, bool ``[vocab]``; at least one of them is.

        Raises:
            UsageError: the grammar is too complex to be followed further.
        """
        ...

    def accept(self, token: int) -> None:
        """``token`` was chosen."""
        ...

    @property
    def complete(self) -> bool:
        """Whether nothing can follow any more."""
        ...


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
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the answer has it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these tokens; ids beyond the vocabulary are refused when the first is chosen."""
    top_logprobs: int | None = None
    """Score every token, beside this many of the likeliest; ``None`` scores none."""

    def __post_init__(self) -> None:
        bounds = (
            (0 <= self.temperature <= 100, "temperature", "between 0 and 100"),
            (self.top_k >= 0, "top_k", "0 or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1"),
            (0 <= self.min_p <= 1, "min_p", "between 0 and 1"),
            (
                REPETITION[0] <= self.repetition_penalty <= REPETITION[1],
                "repetition_penalty",
                "between 0.01 and 100",
            ),
            (self.seed is None or 0 <= self.seed < 1 << 63, "seed", "0 or more"),
            (abs(self.presence_penalty) <= MAX_PENALTY, "presence_penalty", "between -2 and 2"),
            (abs(self.frequency_penalty) <= MAX_PENALTY, "frequency_penalty", "between -2 and 2"),
            (
                all(token >= 0 and abs(bias) <= MAX_BIAS for token, bias in self.logit_bias.items()),
                "logit_bias",
                "token ids with numbers between -100 and 100",
            ),
            (
                self.top_logprobs is None or 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS,
                "top_logprobs",
                f"between 0 and {MAX_TOP_LOGPROBS}",
            ),
        )
        for good, name, needed in bounds:
            if not good:
                raise UsageError(f"{name} must be {needed}, not {getattr(self, name)}")


def likeliest(logits: torch.Tensor) -> int:
    """The token of the largest logit, ``[vocab]``; of several, the first.

    By numpy: torch would wake its threads for so little, and they wait for those that compute.
    """
    return int(logits.numpy().argmax())


class Sampler:
    """Chooses tokens by one :class:`Sampling`; holds the random state of one answer, and what it has said."""

    def __init__(self, sampling: Sampling, constraint: Constraint | None = None) -> None:
        self._sampling = sampling
        self._constraint = constraint
        self._said: Counter[int] = Counter()
        self.score: TokenScore | None = None
        """How likely the last chosen token was to the model, if that was asked for."""
        self._greedy = sampling.temperature < COLDEST
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

    @property
    def complete(self) -> bool:
        """Whether what was chosen ends the answer, because its grammar allows nothing more."""
        return self._constraint is not None and self._constraint.complete

    def choose(self, logits: torch.Tensor, token_ids: list[int]) -> int:
        """The next token.

        Args:
            logits: ``[vocab]`` for the position after the last of ``token_ids``; not changed.
            token_ids: the prompt and all that was generated.

        Raises:
            UsageError: a bias for a token outside of the vocabulary, or a grammar that cannot be followed.
        """
        token = self._chosen(self._adjusted(logits.float()).unsqueeze(0), token_ids)
        if self._sampling.top_logprobs is not None:
            self.score = score(logits, token, self._sampling.top_logprobs)
        self._said[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def _adjusted(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits with bias, penalties and grammar, in that order; the same tensor when there is none."""
        sampling = self._sampling
        if sampling.logit_bias:
            if max(sampling.logit_bias) >= len(logits):
                raise UsageError(
                    f"logit_bias names token {max(sampling.logit_bias)}, and the vocabulary has {len(logits)}"
                )
            logits = logits.clone()
            logits[list(sampling.logit_bias)] += torch.tensor(list(sampling.logit_bias.values()))
        if self._said and (sampling.presence_penalty or sampling.frequency_penalty):
            logits = logits.clone()
            often = torch.tensor(list(self._said.values()), dtype=torch.float32)
            logits[list(self._said)] -= sampling.presence_penalty + sampling.frequency_penalty * often
        if self._constraint is not None:
            logits = logits.masked_fill(~self._constraint.allowed(len(logits)), float("-inf"))
        return logits

    def _chosen(self, scores: torch.Tensor, token_ids: list[int]) -> int:
        """The token, by the processors of transformers, from ``[1, vocab]``."""
        if self._processors:
            seen = cast(torch.LongTensor, torch.tensor([token_ids]))
            scores = self._processors(seen, cast(torch.FloatTensor, scores))
        if self._greedy:
            return likeliest(scores[0])
        probabilities = torch.softmax(scores, dim=-1)
        return int(torch.multinomial(probabilities[0], 1, generator=self._random))
