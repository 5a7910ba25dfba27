"""How the next token is chosen from logits: what transformers' processors keep, and one of it by chance.

Penalties and limits are those of ``transformers.generation.logits_process``, in the same order; they are
computed here, since importing them takes seconds. Probabilities are float64, in which no temperature and no
penalty that is allowed overflows.

Chance has no memory: what is drawn follows from the seed, the position and the probabilities alone
(:func:`draw`). So a seed gives the same answer whether its tokens are computed one after another or guessed
ahead and verified, alone or beside others, and whatever was drawn before.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal.client.ring.results import NextToken
from shoal.client.scores import TokenScore, score
from shoal.errors import ShoalError, StepFailed, UsageError
from shoal.executor.arrays import Floats

MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_PENALTY = 2.0
REPETITION = (0.01, 100.0)
"""Bounds of the repetition penalty: beyond, scores overflow."""
COLDEST = 1e-5
"""A temperature below this is taken for 0: the likeliest token is certain then, and scores would overflow."""
SEED_BITS = 53
"""So many a number may have in any language's JSON."""


class Constraint(Protocol):
    """What an answer may say next: the state of a grammar. For one thread at a time."""

    def allowed(self, vocab: int) -> npt.NDArray[np.bool_]:
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
    """The same seed gives the same tokens, whatever else runs and whether they are guessed ahead or not."""
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that the answer has already."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit for each time that the answer has it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict[int, float])
    """Added to the logits of these tokens; ids beyond the vocabulary are refused when the first is chosen."""
    top_logprobs: int | None = None
    """Score every token, beside this many of the likeliest; ``None`` scores none."""

    @property
    def adjusts(self) -> bool:
        """Whether anything is to be done with the logits before the choice, or to be known of them after."""
        penalties = self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1
        return bool(penalties or self.logit_bias) or self.top_logprobs is not None

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


def sample_seed(seed: int, *place: int) -> int:
    """The seed of one sample of many: its own, whatever is made before it or beside it.

    Args:
        place: what tells it from the others, such as its prompt and its number.
    """
    told = sha256(" ".join(map(str, (seed, *place))).encode()).digest()
    return int.from_bytes(told[:8]) >> (64 - SEED_BITS)


def likeliest(logits: Floats) -> int:
    """The token of the largest logit, ``[vocab]``; of several, the first.

    Raises:
        StepFailed: a logit is NaN.
    """
    token = int(logits.argmax())
    if np.isnan(logits[token]):
        raise _not_numbers()
    return token


def penalised(logits: Floats, token_ids: Sequence[int], penalty: float) -> Floats:
    """Logits ``[vocab]``, less for each token that occurred (Keskar et al., "CTRL", 2019)."""
    seen = np.unique(np.asarray(token_ids, np.intp))
    found = logits.copy()
    with np.errstate(over="ignore"):  # what overflows is certain, or impossible
        found[seen] = np.where(logits[seen] < 0, logits[seen] * penalty, logits[seen] / penalty)
    return found


def candidates(logits: Floats, sampling: Sampling) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The tokens that may be chosen from, in order, and how probable each is.

    Args:
        logits: ``[vocab]``, with penalties and grammar applied.

    Raises:
        StepFailed: a logit is NaN, or none is above minus infinity.
    """
    scores = _below_largest(logits) / sampling.temperature
    kept = np.arange(len(scores))
    if 0 < sampling.top_k < len(scores):
        kept = np.flatnonzero(scores >= np.partition(scores, -sampling.top_k)[-sampling.top_k])
    weights = np.exp(scores[kept])
    if sampling.top_p < 1:
        kept, weights = _likeliest_share(kept, weights / weights.sum(), sampling.top_p)
    if sampling.min_p:
        likely = weights >= sampling.min_p * weights.max()
        kept, weights = kept[likely], weights[likely]
    return kept, weights / weights.sum()


def draw(
    seed: int, position: int, tokens: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64]
) -> int:
    """One of ``tokens``, as often as it is probable; the same again for the same arguments.

    By the Gumbel-max rule (Maddison et al., "A* Sampling", 2014): each token of the vocabulary has a number
    of its own at this position, exponential with mean 1, and the least ``number / probability`` wins. So
    probabilities that are a little different mostly give the same token, whichever others were kept.
    """
    # From token 0 on, although few may be kept: no token's number depends on which others are.
    stream = np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(position,)))
    uniform = np.random.Generator(stream).random(int(tokens.max()) + 1)[tokens]
    with np.errstate(divide="ignore", over="ignore"):  # a probability may underflow, and a number be 0
        # As -log(u) >= 1 - u, few tokens can have the least, and no others need their logarithm.
        bound = (1 - uniform) / probabilities
        best = bound.argmin()
        near = np.flatnonzero(bound <= max(bound[best], -np.log(uniform[best]) / probabilities[best]))
        return int(tokens[near[(-np.log(uniform[near]) / probabilities[near]).argmin()]])


def _below_largest(logits: Floats) -> npt.NDArray[np.float64]:
    """By how much each logit is below the largest one: 0 or less, which no exponential overflows with."""
    largest = logits.max()
    if np.isposinf(largest):
        return np.where(np.isposinf(logits), 0.0, -np.inf)
    if not np.isfinite(largest):
        raise _not_numbers()
    return logits.astype(np.float64) - float(largest)


def _likeliest_share(
    kept: npt.NDArray[np.intp], probabilities: npt.NDArray[np.float64], share: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The fewest of the likeliest tokens that together have ``share`` of the probability; at least one.

    Only those are sorted of which not all could be left out: tokens below the average of what is left out
    are never among the kept.
    """
    rest = 1 - share
    average = min(rest / len(probabilities), probabilities.max())
    likely = np.flatnonzero(probabilities >= average)
    order = likely[np.argsort(probabilities[likely], kind="stable")]
    below = 1 - probabilities[likely].sum()
    stays = below + np.cumsum(probabilities[order]) > rest
    stays[-1] = True
    chosen = np.sort(order[stays])
    return kept[chosen], probabilities[chosen]


def _not_numbers() -> StepFailed:
    return StepFailed(
        "the logits are not finite", check="check the model's weights, and the last node of the route"
    )


class Sampler:
    """Chooses tokens by one :class:`Sampling`; holds what one answer has said."""

    def __init__(self, sampling: Sampling, constraint: Constraint | None = None) -> None:
        self._sampling = sampling
        self._constraint = constraint
        self._said: Counter[int] = Counter()
        self.score: TokenScore | None = None
        """How likely the last chosen token was to the model, if that was asked for."""
        self._greedy = sampling.temperature < COLDEST
        self._plain = self._greedy and constraint is None and not sampling.adjusts
        self._seed = secrets.randbits(63) if sampling.seed is None else sampling.seed

    @property
    def complete(self) -> bool:
        """Whether what was chosen ends the answer, because its grammar allows nothing more."""
        return self._constraint is not None and self._constraint.complete

    @property
    def plain(self) -> bool:
        """Whether the likeliest token is always chosen, and nothing more is to be known of it."""
        return self._plain

    def note(self, token: int) -> None:
        """The likeliest token was taken."""
        self._said[token] += 1

    def choose(self, logits: Floats, token_ids: Sequence[int]) -> int:
        """The next token.

        Args:
            logits: ``[vocab]`` for the position after the last of ``token_ids``; not changed.
            token_ids: the prompt and all that was generated. Their number is the position that is drawn for.

        Raises:
            UsageError: a bias for a token outside of the vocabulary, or a grammar that cannot be followed.
            StepFailed: the logits are not numbers.
        """
        adjusted = self._adjusted(logits, self._said)
        if self._constraint is not None:
            adjusted = np.where(self._constraint.allowed(len(logits)), adjusted, np.float32(-np.inf))
        token = self._chosen(adjusted, token_ids)
        if self._sampling.top_logprobs is not None:
            self.score = score(logits, token, self._sampling.top_logprobs)
        self._said[token] += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        return token

    def foresee(self, logits: Floats, token_ids: Sequence[int], prompt: int) -> int:
        """What would be chosen by these logits, perhaps another model's: drawn as it will be, so that models
        which mostly agree mostly say the same.

        Nothing is kept of it, and no grammar is asked, as one follows certain tokens alone. From any thread.

        Args:
            prompt: how many of ``token_ids`` are the prompt.

        Raises:
            As :meth:`choose`.
        """
        penalties = self._sampling.presence_penalty or self._sampling.frequency_penalty
        return self._chosen(
            self._adjusted(logits, Counter(token_ids[prompt:] if penalties else ())), token_ids
        )

    def _adjusted(self, logits: Floats, said: Counter[int]) -> Floats:
        """The logits with bias and penalties, in that order; the same array when there is none."""
        sampling = self._sampling
        if sampling.logit_bias:
            if max(sampling.logit_bias) >= len(logits):
                raise UsageError(
                    f"logit_bias names token {max(sampling.logit_bias)}, and the vocabulary has {len(logits)}"
                )
            logits = logits.copy()
            logits[list(sampling.logit_bias)] += np.array(list(sampling.logit_bias.values()), np.float32)
        if said and (sampling.presence_penalty or sampling.frequency_penalty):
            logits = logits.copy()
            often = np.array(list(said.values()), np.float32)
            logits[list(said)] -= sampling.presence_penalty + sampling.frequency_penalty * often
        return logits

    def _chosen(self, logits: Floats, token_ids: Sequence[int]) -> int:
        if self._sampling.repetition_penalty != 1:
            logits = penalised(logits, token_ids, self._sampling.repetition_penalty)
        if self._greedy:
            return likeliest(logits)
        tokens, probabilities = candidates(logits, self._sampling)
        return draw(self._seed, len(token_ids), tokens, probabilities)


def choose_all(
    sampler: Sampler, ahead: Sequence[int], known: list[int], ends: Container[int], logits: Floats
) -> list[NextToken]:
    """What follows each token of a step, as long as the next token of it is what was chosen.

    Args:
        ahead: the tokens of the step.
        known: those before it, to which those that hold are added.
        ends: tokens after which nothing follows.
    """
    chosen: list[NextToken] = []
    for row, token in enumerate(ahead[: len(logits)]):
        if chosen and chosen[-1].token != token:
            break
        known.append(token)
        try:
            following = sampler.choose(logits[row], known)
        except ShoalError:
            if not chosen:
                raise
            break  # it is raised when this token's turn has come, which may be never
        chosen.append(NextToken(following, None, sampler.score, sampler.complete))
        if following in ends or sampler.complete:
            break
    return chosen
