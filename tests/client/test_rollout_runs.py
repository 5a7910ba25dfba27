"""What a run of rollouts makes of what nodes say and of what fails, over sessions without nodes."""

from __future__ import annotations

from collections import Counter
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import trio

from shoal.client.generate import Delta
from shoal.client.rollouts import run as running
from shoal.client.rollouts.open import make_rollouts
from shoal.client.rollouts.prompts import RolloutPrompt
from shoal.client.rollouts.run import RolloutOptions, Rollouts
from shoal.client.rollouts.samples import SampleFile, read_samples
from shoal.client.sampling import sample_seed
from shoal.client.scores import TokenScore
from shoal.errors import Busy, StepFailed, UsageError
from shoal.swarm.announcement import Announcement, Served
from shoal.types import Digest, ModelShape

DIGEST = "sha256:" + "a" * 64
SHAPE = ModelShape("fish", Digest(DIGEST), 6, 64, 100, 384)
LOCAL = SimpleNamespace(name="fish", digest=DIGEST, shape=SHAPE, end_tokens=frozenset(), soft_prompt=None)


def announced(peer, awaited):
    served = Served("fish", DIGEST, 6, 64, 100, 384, 0, 6, "fp32", 900, 900, 0, 1.0, awaited=awaited)
    return Announcement(peer, 1, 0.0, 60.0, (), (), served)


class Nodes:
    """A model's nodes: every session goes over the one that is called "own"."""

    def __init__(self, awaited):
        self.awaited = awaited
        self.open = self.most = 0

    @asynccontextmanager
    async def open_session(self, tokens):
        hop = SimpleNamespace(address=SimpleNamespace(peer="own"))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            await trio.lowlevel.checkpoint()
            yield SimpleNamespace(
                ring=SimpleNamespace(route=[hop], numerics="1/fp32/f32/c"),
                prompt_of=lambda prompt: prompt,
                reusable=lambda prompt: 0,
            )
        finally:
            self.open -= 1

    def serving(self):
        return [announced(peer, awaited) for peer, awaited in self.awaited.items()]

    async def protect(self, *asked):
        return None, SimpleNamespace(level="fast", faults=())


@pytest.fixture
def answers(monkeypatch):
    """How each sample's tokens come about, by its number: what is awaited before each of them."""
    found = {}
    numbers = {sample_seed(0, 1, number): number for number in range(64)}

    async def generate(session, prompt, detokenizer, *, sampling, max_tokens, **options):
        before = found.get(numbers[sampling.seed], trio.lowlevel.checkpoint)
        for token in range(max_tokens):
            await before()
            score = TokenScore(token, -0.5, ())
            yield Delta("", (token,), "length" if token + 1 == max_tokens else None, score)

    monkeypatch.setattr(running, "generate", generate)
    return found


@pytest.fixture
def run(tmp_path):
    async def made(nodes, told=lambda progress: None, **options):
        file = SampleFile(tmp_path / "out.jsonl")
        try:
            given = RolloutOptions(**options)
            return await Rollouts(nodes, LOCAL, None, [RolloutPrompt(1, (1, 2))], file, given, told).run()
        finally:
            file.close()

    return made


async def test_the_word_of_a_node_that_is_no_hop_of_the_run_holds_nothing_up(answers, run, autojump_clock):
    nodes = Nodes({"own": 0, "stranger": 7})

    async def slowly():
        await trio.sleep(1)

    answers.update(dict.fromkeys(range(6), slowly))
    told = []
    await run(nodes, told.append, samples=6, max_tokens=3, at_once=3)
    assert nodes.most == 3
    assert not any(progress.resting for progress in told)


async def test_while_a_hop_says_that_somebody_waits_one_session_is_open(answers, run, autojump_clock):
    nodes = Nodes({"own": 1, "stranger": 0})
    assert (await run(nodes, samples=6, max_tokens=3, at_once=3)).made == 6
    assert nodes.most == 1


class FullNodes(Nodes):
    """Nodes that take so many sessions."""

    def __init__(self, room):
        super().__init__({"own": 0})
        self.room = room

    @asynccontextmanager
    async def open_session(self, tokens):
        if self.open >= self.room:
            raise Busy("it is full")
        async with super().open_session(tokens) as session:
            yield session


async def test_once_full_nodes_have_room_again_more_sessions_are_tried_one_by_one(
    answers, run, autojump_clock
):
    nodes, opened = FullNodes(1), []

    async def slowly():
        opened.append((trio.current_time() - began, nodes.open))
        if opened[-1][0] > 20:
            nodes.room = 6
        await trio.sleep(1)

    answers.update(dict.fromkeys(range(60), slowly))
    began = trio.current_time()
    await run(nodes, samples=60, max_tokens=3, at_once=6)
    assert max(count for at, count in opened if at <= 20) == 1
    first = {count: at for at, count in reversed(opened)}
    assert nodes.most >= 4
    assert all(first[n + 1] - first[n] >= running.GROW_EVERY_S - 1 for n in range(2, nodes.most))


async def test_a_sample_rests_for_no_longer_than_it_may_in_all(answers, run, monkeypatch, autojump_clock):
    monkeypatch.setattr(running, "MOST_REST_S", 6.0)
    nodes = Nodes({"own": 0})

    async def first():
        await trio.sleep(3)
        nodes.awaited["own"] = 1  # by now the second is open as well

    async def second():
        await trio.sleep(1)

    answers.update({0: first, 1: second})
    began, ended = trio.current_time(), []
    await run(nodes, lambda _: ended.append(trio.current_time() - began), samples=2, max_tokens=8, at_once=2)
    assert nodes.most == 2
    assert ended[0] == pytest.approx(8 * 1 + 6, abs=1)  # and not as long for each of its tokens
    assert ended[1] == pytest.approx(8 * 3, abs=1)


@pytest.mark.parametrize(("error", "times"), [(StepFailed("NaN"), running.TRIES), (UsageError("no"), 1)])
async def test_a_sample_that_fails_several_times_ends_the_run_and_others_are_kept(
    tmp_path, answers, run, autojump_clock, error, times
):
    tried = Counter()

    async def fails():
        tried["second"] += 1
        raise error

    answers[1] = fails
    with pytest.raises(type(error), match=error.message):
        await run(Nodes({"own": 0}), samples=3, max_tokens=2, at_once=1)
    assert tried["second"] == times
    made = {sample.sample for _, sample in read_samples(tmp_path / "out.jsonl")}
    assert made == ({0, 2} if times > 1 else {0})


@pytest.mark.parametrize(
    ("of_model", "options", "why"),
    [
        ({"encodes": True}, {}, "generates no text"),
        ({"both": object()}, {}, "an encoder before its decoder"),
        ({"adapter": DIGEST}, {"receipts": True}, "receipts name a model and no adapter"),
        ({}, {"stop": ("\n",)}, "fish has no tokenizer, so nothing stops"),
    ],
)
async def test_what_no_samples_are_made_of_is_refused_and_no_file_is_there(tmp_path, of_model, options, why):
    async def given(value):
        return value

    shape = replace(SHAPE, adapter=of_model.get("adapter"))
    client = SimpleNamespace(
        resolve=lambda model: given(SimpleNamespace(**vars(LOCAL) | {"shape": shape})),
        encodes_only=lambda local: given(of_model.get("encodes", False)),
        encoder_decoder=lambda local: given(of_model.get("both")),
        codec=lambda local: given(None),
    )
    out = tmp_path / "out.jsonl"
    with pytest.raises(UsageError, match=why):
        await make_rollouts(client, "fish", [{"token_ids": [1]}], out, RolloutOptions(**options))
    assert not out.exists()
