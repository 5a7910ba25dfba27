"""Answers by a model with the adapter that is being tuned, through the nodes that tune it.

No node serves the adapter yet, and nodes that train keep nothing between two questions: all of a sequence is
computed again for each of its tokens. So this is for answers of a few tokens, as reinforcement learning may
want them. For longer ones let nodes serve the adapter, and make samples with ``Swarm.rollouts``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, pstdev

from shoal.client.sampling import Sampler, Sampling, sample_seed
from shoal.client.scores import TokenScore
from shoal.client.tuning.blocks import TuningBlocks
from shoal.client.tuning.data import Example, packed
from shoal.client.tuning.ends import TuningEnds
from shoal.errors import UsageError
from shoal.executor.arrays import Floats
from shoal.executor.thread import ComputeThread

SURE = 1e-4
"""Added to a group's standard deviation, as in Shao et al.: rewards that hardly differ teach nothing."""


@dataclass(frozen=True, slots=True)
class TunedAnswer:
    """What the model with the adapter has said."""

    prompt: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The end token included."""
    logprobs: tuple[float, ...]
    """Of each of them, by the model's own logits."""

    def example(self, advantage: float) -> Example:
        """What is to be learnt of it: the answer, by ``advantage``, which may be below 0."""
        weights = (advantage,) * len(self.token_ids)
        return Example((*self.prompt, *self.token_ids), len(self.prompt), weights=weights)


def group_advantages(rewards: Sequence[float]) -> list[float]:
    """How much better each answer to one prompt was than the others, in standard deviations.

    That is GRPO (Shao et al., "DeepSeekMath", 2024, section 4.1). Learning each batch of answers once, as
    they were drawn, needs no ratio of probabilities and no clipping.
    """
    if min(rewards) == max(rewards):
        return [0.0] * len(
            rewards
        )  # not what rounding makes of it: AdamW would take the least for a direction
    middle, spread = fmean(rewards), pstdev(rewards)
    return [(reward - middle) / (spread + SURE) for reward in rewards]


async def sample_answers(
    parts: tuple[TuningBlocks, TuningEnds, ComputeThread],
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_tokens: int,
    seed: int,
    end_tokens: frozenset[int],
    batch_tokens: int,
) -> list[TunedAnswer]:
    """An answer to each prompt; a prompt that is given several times has as many, each with its own chance.

    Args:
        seed: the same gives the same answers.
        batch_tokens: tokens that travel together, with the rows that stand before each sequence.

    Raises:
        UsageError: a prompt is empty, or too long with its answer.
        NoCoverage: nobody trains some of the blocks.
        ShoalError: what the hops of one route after another have said.
    """
    blocks, ends, thread = parts
    before = ends.before
    if max_tokens < 1 or not all(prompts):
        raise UsageError("a prompt, or an answer, of no tokens", check="give prompts and max_tokens")
    longest, most = max(map(len, prompts), default=0) + max_tokens, blocks.most_rows - before
    if longest > most:
        raise UsageError(f"{longest} tokens, and {most} fit into a message", check="ask for fewer")
    said = [_Growing(list(prompt), sampling, seed, number) for number, prompt in enumerate(prompts)]
    for _ in range(max_tokens):
        # Answers that begin alike are computed once: all to one prompt have the first token's forward.
        alike: dict[tuple[int, ...], list[_Growing]] = {}
        for one in said:
            if not one.ended:
                alike.setdefault(tuple(one.token_ids), []).append(one)
        for batch in packed(list(alike), lambda tokens: before + len(tokens), batch_tokens):
            logits = await blocks.step(partial(_logits, parts, batch))
            await thread.run(partial(_choose, [alike[tokens] for tokens in batch], logits, end_tokens))
    return [one.answer for one in said]


class _Growing:
    """A sequence that is being written."""

    def __init__(self, prompt: list[int], sampling: Sampling, seed: int, number: int) -> None:
        self.token_ids = list(prompt)
        self.ended = False
        self._prompt = tuple(prompt)
        self._scores: list[TokenScore] = []
        self._sampler = Sampler(replace(sampling, seed=sample_seed(seed, number), top_logprobs=0))

    @property
    def answer(self) -> TunedAnswer:
        said = tuple(self.token_ids[len(self._prompt) :])
        return TunedAnswer(self._prompt, said, tuple(score.logprob for score in self._scores))

    def choose(self, logits: Floats, end_tokens: frozenset[int]) -> None:
        """Add the next token, by ``[vocab]``."""
        token = self._sampler.choose(logits, self.token_ids)
        self.token_ids.append(token)
        self.ended = token in end_tokens
        if self._sampler.score is not None:
            self._scores.append(self._sampler.score)


def _choose(alike: Sequence[Sequence[_Growing]], logits: Floats, end_tokens: frozenset[int]) -> None:
    """Add the next token of answers that are alike so far, by a row of ``[len(alike), vocab]`` for each."""
    for group, row in zip(alike, logits, strict=True):
        for one in group:
            one.choose(row, end_tokens)


async def _logits(
    parts: tuple[TuningBlocks, TuningEnds, ComputeThread], sequences: Sequence[Sequence[int]]
) -> Floats:
    blocks, ends, thread = parts
    hidden = await thread.run(partial(ends.embed_sequences, sequences))
    _, out = await blocks.forward(hidden, ends.lengths(sequences))
    return await thread.run(partial(ends.last_logits, sequences, out))
