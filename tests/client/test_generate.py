"""Deltas: what is streamed, when it ends, and how a token is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.client.sampling import Sampler, Sampling
from shoal.client.stop_filter import StopFilter
from shoal.errors import UsageError

from .conftest import PROMPT, THIRDS, memory_swarm


async def collect(answer):
    return [delta async for delta in answer]


async def test_deltas_carry_the_tokens_and_the_last_one_says_why_it_ended(tmp_path, checkpoint, whole):
    async with memory_swarm(tmp_path, checkpoint, THIRDS) as swarm:
        answer = swarm.client.generate(str(checkpoint), PROMPT, max_tokens=5)
        deltas = await collect(answer)
    expected = whole.greedy(PROMPT, 5)
    assert answer.token_ids == expected[: len(answer.token_ids)]
    assert [d.finish_reason for d in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == ("length" if len(answer.token_ids) == 5 else "stop")
    assert answer.prompt_token_ids == PROMPT
    assert [str(stage.span) for stage in answer.route] == ["0:2", "2:3", "3:6"]
    assert answer.timing.tokens == len(answer.token_ids)


async def test_the_same_seed_gives_the_same_tokens(tmp_path, checkpoint):
    async with memory_swarm(tmp_path, checkpoint, THIRDS) as swarm:
        answers = []
        for seed in (1, 1, 2):
            answer = swarm.client.generate(
                str(checkpoint), PROMPT, max_tokens=12, temperature=2.0, top_k=50, seed=seed
            )
            await collect(answer)
            answers.append(answer.token_ids)
    assert answers[0] == answers[1]
    assert answers[0] != answers[2]


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 5e-324},
        {"seed": -1},
        {"temprature": 1.0},
    ],
)
async def test_an_option_that_cannot_be_is_refused_at_once(tmp_path, checkpoint, options):
    async with memory_swarm(tmp_path, checkpoint, THIRDS) as swarm:
        with pytest.raises(UsageError):
            swarm.client.generate(str(checkpoint), PROMPT, **options)


async def test_a_prompt_or_messages_are_needed_and_not_both(tmp_path, checkpoint):
    async with memory_swarm(tmp_path, checkpoint, THIRDS) as swarm:
        with pytest.raises(UsageError):
            swarm.client.generate(str(checkpoint))
        with pytest.raises(UsageError):
            swarm.client.generate(str(checkpoint), "a", messages=[{"role": "user", "content": "b"}])
        with pytest.raises(UsageError, match="empty"):
            await collect(swarm.client.generate(str(checkpoint), []))


LOGITS = np.array([0.0, 3.0, 2.9, -1.0], np.float32)


def test_greedy_takes_the_likeliest():
    assert Sampler(Sampling()).choose(LOGITS, [0]) == 1


@pytest.mark.parametrize(
    ("sampling", "possible"),
    [
        (Sampling(temperature=1.0, top_k=1, seed=0), {1}),
        (Sampling(temperature=1.0, top_k=2, seed=0), {1, 2}),
        (Sampling(temperature=1.0, top_p=0.6, seed=0), {1, 2}),
        (Sampling(temperature=1.0, min_p=0.5, seed=0), {1, 2}),
        (Sampling(temperature=100.0, seed=0), {0, 1, 2, 3}),
        (Sampling(temperature=0.001, seed=0), {1}),
    ],
)
def test_sampling_keeps_to_its_candidates(sampling, possible):
    sampler = Sampler(sampling)
    assert {sampler.choose(LOGITS, range(position)) for position in range(300)} == possible


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 1e-6, 1e-5])
def test_the_colder_the_surer_and_never_a_number_that_is_none(temperature):
    for penalty in (0.01, 100.0):
        sampling = Sampling(temperature=temperature, repetition_penalty=penalty, seed=0)
        assert Sampler(sampling).choose(1000 * LOGITS, [3]) == Sampler(
            Sampling(repetition_penalty=penalty)
        ).choose(LOGITS, [3])


def test_a_repetition_penalty_makes_room_for_others():
    assert Sampler(Sampling(repetition_penalty=1.5)).choose(LOGITS, [1]) == 2


@pytest.mark.parametrize(
    ("stop", "pieces", "shown"),
    [
        (["END"], ["a", "b", "c"], "abc"),
        (["END"], ["one E", "ND two"], "one "),
        (["END"], ["one E", "X"], "one EX"),
        (["b", "ab"], ["ab"], ""),
        (["x"], ["", "x"], ""),
        ([], ["E"], "E"),
    ],
)
def test_nothing_follows_a_stop_string(stop, pieces, shown):
    text = StopFilter(stop)
    out = "".join(text.push(piece) for piece in pieces)
    out += text.finish("")
    assert out == shown


@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=3), max_size=3), st.data())
def test_stop_strings_do_not_depend_on_how_text_is_cut(text, stop, data):
    whole, cut = StopFilter(stop), StopFilter(stop)
    expected = whole.push(text) + whole.finish("")
    out, rest = "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        out += cut.push(rest[:size])
        rest = rest[size:]
    assert out + cut.finish("") == expected
