"""Tokens are chosen from what transformers' processors keep, as probably as it says, by the seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation import logits_process as hf

from shoal.client.sampling import Sampler, Sampling, candidates, draw, likeliest, penalised
from shoal.client.scores import score
from shoal.errors import StepFailed
from shoal.executor.arrays import Floats

WAYS: list[dict[str, Any]] = [
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 100.0},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 0.7, "top_k": 100_000},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 2.0, "top_p": 0.99},
    {"temperature": 0.5, "top_p": 0.01},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.5, "min_p": 1.0},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.8, "min_p": 0.02},
]


def random_logits(seed: int) -> Floats:
    """Of small and large vocabularies, peaked and flat, some with equal logits, some with forbidden ones."""
    random = np.random.default_rng(seed)
    size = int(random.choice([3, 50, 1000, 49152]))
    logits = random.standard_normal(size, np.float32) * np.float32(random.choice([0.1, 2.0, 8.0]))
    if seed % 3 == 0:
        logits[random.integers(0, size, size // 2)] = -np.inf
        logits[int(random.integers(0, size))] = 5.0
    if seed % 5 == 0:
        logits = np.round(logits)
    return logits


def by_transformers(logits: Floats, sampling: Sampling) -> np.ndarray:
    """The probability of every token, ``[vocab]``, in float64."""
    processors = hf.LogitsProcessorList([hf.TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        processors.append(hf.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(hf.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(hf.MinPLogitsWarper(sampling.min_p))
    scores: Any = torch.from_numpy(logits.astype(np.float64))[None]
    ids: Any = torch.zeros((1, 1), dtype=torch.long)
    return torch.softmax(processors(ids, scores)[0], -1).numpy()


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_tokens_are_kept_and_weighed_as_transformers_does(way: dict[str, Any]) -> None:
    sampling = Sampling(**way)
    for seed in range(40):
        logits = random_logits(seed)
        expected = by_transformers(logits, sampling)
        tokens, probabilities = candidates(logits, sampling)
        found = np.zeros(len(logits))
        found[tokens] = probabilities
        # Of equal logits at the edge of top-p any may be kept: so many, and the same sum.
        np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-9, atol=1e-15)
        if seed % 5:
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("penalty", [0.01, 0.5, 1.3, 100.0])
def test_tokens_that_occurred_are_penalised_as_transformers_does(penalty: float) -> None:
    for seed in range(20):
        logits = random_logits(seed)
        seen = np.random.default_rng(seed).integers(0, len(logits), 30).tolist()
        ids: Any = torch.tensor([seen])
        scores: Any = torch.from_numpy(logits)[None]
        expected = hf.RepetitionPenaltyLogitsProcessor(penalty)(ids, scores)[0].numpy()
        before = logits.copy()
        assert np.array_equal(penalised(logits, seen, penalty), expected)
        assert np.array_equal(logits, before), "what came in is not changed"


def test_tokens_come_as_often_as_they_are_probable() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    counts = np.bincount([sampler.choose(logits, range(position)) for position in range(8_000)], minlength=4)
    np.testing.assert_allclose(counts / 8_000, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_a_seed_gives_the_same_tokens_and_another_gives_others() -> None:
    logits = random_logits(1)
    said = [
        [sampler.choose(logits, range(position)) for position in range(20)]
        for sampler in (Sampler(Sampling(temperature=5.0, seed=seed)) for seed in (7, 7, 8))
    ]
    assert said[0] == said[1] != said[2]


def test_what_is_drawn_at_a_position_does_not_depend_on_what_was_drawn_before() -> None:
    logits = random_logits(1)
    sampling = Sampling(temperature=5.0, seed=7)
    sampler = Sampler(sampling)
    in_turn = [sampler.choose(logits, range(position)) for position in range(20)]
    assert [Sampler(sampling).choose(logits, range(position)) for position in range(20)] == in_turn
    assert len(set(in_turn)) > 5


def test_probabilities_that_are_a_little_different_mostly_give_the_same_token() -> None:
    """As those of one model on other machines, or of a small model that drafts for a large one."""
    tokens, same = np.arange(1000), 0
    for position in range(300):
        weights = np.random.default_rng(position).exponential(size=1000)
        close = weights * np.random.default_rng(position + 1).uniform(0.98, 1.02, 1000)
        kept = tokens[close > 0.5]  # others were left out, too
        first = draw(3, position, tokens, weights / weights.sum())
        same += first == draw(3, position, kept, close[kept] / close[kept].sum())
    assert same > 240


def test_draws_are_independent_between_seeds_and_positions() -> None:
    tokens, even = np.arange(64), np.full(64, 1 / 64)
    drawn = np.array([[draw(seed, position, tokens, even) for position in range(3000)] for seed in (0, 1)])
    counts = np.bincount(drawn.ravel(), minlength=64)
    assert abs(counts - 6000 / 64).max() < 5 * np.sqrt(6000 / 64)
    for other in (drawn[1], np.roll(drawn[0], 1)):
        assert 0.005 < (drawn[0] == other).mean() < 0.03


def test_what_has_no_probability_left_is_never_drawn() -> None:
    tokens, probabilities = np.arange(3), np.array([0.0, 1.0, 5e-324])
    assert {draw(1, position, tokens, probabilities) for position in range(500)} == {1}


def test_a_token_that_is_forbidden_is_never_chosen() -> None:
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500]] = 1.0
    sampler = Sampler(Sampling(temperature=100.0, top_p=0.999, top_k=900, seed=1))
    assert {sampler.choose(logits, range(position)) for position in range(200)} == {3, 500}


@pytest.mark.parametrize("temperature", [1.1e-5, 1.0, 100.0])
def test_nothing_overflows(temperature: float) -> None:
    huge = np.finfo(np.float32).max
    logits = np.array([-huge, 0.0, huge / 2, huge], np.float32)
    sampler = Sampler(Sampling(temperature=temperature, repetition_penalty=0.01, top_p=0.9, seed=1))
    assert sampler.choose(logits, [0, 3]) == 3
    assert Sampler(Sampling(temperature=1.0)).choose(np.array([np.inf, 1.0], np.float32), []) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_fail_the_step(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature=temperature))
    with pytest.raises(StepFailed, match="not finite"):
        sampler.choose(np.array([1.0, np.nan], np.float32), [])


def test_of_equal_logits_the_first_is_the_likeliest() -> None:
    assert likeliest(np.array([0.0, 2.0, 2.0], np.float32)) == 1


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_scores_are_log_probabilities_the_likeliest_first(top: int) -> None:
    for seed in range(1, 15):
        logits = random_logits(seed)
        expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
        found = score(logits, 2, top)
        assert found.logprob == pytest.approx(float(expected[2]), abs=1e-5)
        values = torch.topk(expected, min(top, len(logits))).values.tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(values, abs=1e-5)
        assert all(float(expected[token]) == pytest.approx(logprob, abs=1e-5) for token, logprob in found.top)
