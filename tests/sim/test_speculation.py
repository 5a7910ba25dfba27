"""Tokens guessed ahead, in simulated time: the same tokens in less time, and never much slower."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from shoal.client import generate
from shoal.client.answer import Answer
from shoal.client.speculation import gain, sources, speculation
from shoal.client.speculation.controller import WindowPlan
from shoal.client.speculation.drafters import Guess
from shoal.testing.sim import model
from shoal.testing.sim.clock import simulate
from shoal.testing.sim.engine import StepCost
from shoal.testing.sim.nodes import SimClient, SimSwarm
from shoal.testing.sim.peers import SimPeers


@dataclass
class Timed:
    """An answer, and how long its tokens took after the first."""

    token_ids: list[int]
    seconds: float
    answer: Answer

    @property
    def speculation(self):
        return self.answer.timing.speculation


@asynccontextmanager
async def a_ring(way_s: float, cost: StepCost, script: Sequence[int], hops: int = 3):
    """Three hops, so far apart, and a client; with more, each of them has others beside it."""
    async with SimPeers.running(random.Random(1), loss=0.0) as peers:
        peers.internet.way_s = way_s
        swarm = SimSwarm(peers, cost=cost)
        for _ in range(hops):
            await swarm.add_node()
        async with swarm.client() as client:
            client.script = model.script(script)
            yield swarm, client


async def ask(client: SimClient, prompt: Sequence[int], count: int, **options) -> Timed:
    answer = client.generate("simulated", prompt, max_tokens=count, **options)
    first = 0.0
    async for _ in answer:
        first = first or trio.current_time()
    return Timed(answer.token_ids, trio.current_time() - first, answer)


def code_like(count: int) -> list[int]:
    """Lines that come again with a word changed, as in code and in extracts."""
    chance = random.Random(5)
    line = [chance.randrange(model.VOCAB) for _ in range(24)]
    text = []
    while len(text) < count:
        line[chance.randrange(len(line))] = chance.randrange(model.VOCAB)
        text += line
    return text[:count]


FAST = StepCost(0.01, 0.002)


def in_turn(way_s: float, cost: StepCost, text: Sequence[int], known: int) -> tuple[Timed, Timed]:
    """The rest of ``text`` after so many tokens, without guesses and with them."""

    async def main():
        async with a_ring(way_s, cost, text) as (_, client):
            prompt, count = text[:known], len(text) - known
            return [await ask(client, prompt, count, speculate=wanted) for wanted in (False, True)]

    plain, ahead = simulate(1, main)
    assert plain.token_ids == ahead.token_ids == list(text[known:])
    return plain, ahead


def test_a_text_that_repeats_itself_takes_a_fifth_of_the_time_and_of_the_turns_of_the_ring() -> None:
    plain, ahead = in_turn(0.05, FAST, code_like(350), 150)
    assert plain.seconds > 5 * ahead.seconds
    turn_s = plain.seconds / (len(plain.token_ids) - 1)
    assert 0.236 < turn_s < 0.27, "the ring's latency and computing, and the steps of the simulator's clock"
    assert ahead.seconds / turn_s < 50


@pytest.mark.parametrize("way_s", [0.0, 0.0075, 0.05])
def test_random_text_takes_no_longer(way_s: float) -> None:
    chance = random.Random(9)
    few = [chance.randrange(40) for _ in range(320)]  # pairs come again, and nothing follows from it
    plain, ahead = in_turn(way_s, FAST, few, 200)
    assert ahead.speculation.accepted <= 0.2 * max(ahead.speculation.guessed, 1)
    assert plain.seconds >= 0.97 * ahead.seconds


class Useless:
    """Is always sure, and never right."""

    def learn(self, token_ids: Sequence[int]) -> None:
        pass

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        return [Guess(model.VOCAB - 1, "useless")] * count


@pytest.mark.parametrize("way_s", [0.0, 0.05])
def test_a_useless_drafter_is_switched_off(way_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "NgramDrafter", Useless)
    chance = random.Random(9)
    plain, ahead = in_turn(way_s, FAST, [chance.randrange(400) for _ in range(170)], 50)
    assert ahead.speculation.guessed < 0.2 * len(plain.token_ids)
    assert plain.seconds >= 0.97 * ahead.seconds


class Mostly:
    """Knows the text, and is right about it in so many of a hundred cases."""

    def __init__(self, text: Sequence[int], right: float) -> None:
        self._text = text
        self._known = 0
        chance = random.Random(3)
        self._right = [chance.random() < right for _ in text]

    def learn(self, token_ids: Sequence[int]) -> None:
        self._known += len(token_ids)

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        start = self._known + len(ahead)
        known = [
            self._text[i] if self._right[i] else 0 for i in range(start, min(start + count, len(self._text)))
        ]
        return [Guess(token, "mostly") for token in known]


def test_a_drafter_that_is_right_in_four_of_five_cases_makes_it_three_times_as_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chance = random.Random(9)
    text = [1 + chance.randrange(400) for _ in range(200)]
    monkeypatch.setattr(generate, "NgramDrafter", lambda: Mostly(text, 0.8))
    plain, ahead = in_turn(0.05, FAST, text, 50)
    assert plain.seconds > 3 * ahead.seconds


class Pretended:
    """A draft model: right in so many of a hundred cases, and each guess takes its time."""

    name = "pretended"
    source = "draft"
    why_off = ""
    ready = True

    def __init__(self, text: Sequence[int], right: float, draft_s: float) -> None:
        self.draft_s = draft_s
        self._text = text
        self._right = right
        self.guesses = 0

    async def check(self, model) -> None:
        pass

    def drafter(self, sampler, *, prompt: int, tokens: int, vocab: int) -> Pretended:
        self._drafter = Mostly(self._text, self._right)
        return self

    def learn(self, token_ids: Sequence[int]) -> None:
        self._drafter.learn(token_ids)

    async def guess(self, ahead: Sequence[int], count: int) -> list[Guess]:
        found = await self._drafter.guess(ahead, count)
        await trio.sleep(self.draft_s * len(found))
        self.guesses += len(found)
        return [Guess(guess.token, self.source, self.draft_s) for guess in found]

    def prepare(self) -> None:
        pass

    def close(self) -> None:
        pass


def with_draft(
    way_s: float, text: Sequence[int], known: int, right: float, draft_s: float
) -> tuple[Timed, Timed, Pretended]:
    """The rest of ``text`` without guesses and with a draft model."""
    draft = Pretended(text, right, draft_s)

    async def main():
        async with a_ring(way_s, FAST, text) as (_, client):
            client.draft = draft
            prompt, count = text[:known], len(text) - known
            return [await ask(client, prompt, count, speculate=wanted) for wanted in (False, True)]

    plain, ahead = simulate(1, main)
    assert plain.token_ids == ahead.token_ids == list(text[known:])
    return plain, ahead, draft


def prose(count: int) -> list[int]:
    chance = random.Random(9)
    return [1 + chance.randrange(400) for _ in range(count)]


def test_a_draft_model_that_takes_its_time_still_makes_it_three_times_as_fast() -> None:
    plain, ahead, _ = with_draft(0.05, prose(290), 50, right=0.8, draft_s=0.005)
    assert plain.seconds > 3 * ahead.seconds
    counts = ahead.speculation.sources["draft"]
    assert counts.accepted > 95


@pytest.mark.parametrize(("way_s", "draft_s"), [(0.0, 0.005), (0.05, 0.02), (0.05, 0.2)])
def test_a_draft_model_that_is_never_right_or_slow_costs_next_to_nothing(
    way_s: float, draft_s: float
) -> None:
    plain, ahead, draft = with_draft(way_s, prose(150), 50, right=0.02, draft_s=draft_s)
    assert plain.seconds >= 0.97 * ahead.seconds
    assert draft.guesses < 0.5 * len(plain.token_ids)


def test_n_grams_guess_where_a_text_repeats_itself_and_the_draft_model_elsewhere() -> None:
    text = prose(90) + code_like(120)
    _, ahead, _ = with_draft(0.05, text, 50, right=0.8, draft_s=0.02)
    sources = ahead.speculation.sources
    assert sources["draft"].guessed > 30
    assert sources["ngram"].accepted > 30


def test_eight_sessions_at_once_are_no_slower_together() -> None:
    text = code_like(250)

    async def main():
        async with a_ring(0.0, FAST, text) as (_, client):
            took = []
            for wanted in (False, True):
                began, found = trio.current_time(), []

                async def one(wanted=wanted, found=found):
                    found.append(await ask(client, text[:150], 30, speculate=wanted))

                async with trio.open_nursery() as nursery:
                    for _ in range(8):
                        nursery.start_soon(one)
                assert all(timed.token_ids == text[150:180] for timed in found)
                took.append(trio.current_time() - began)
            return took

    plain_s, ahead_s = simulate(1, main)
    assert plain_s >= 0.95 * ahead_s


def test_hops_drop_what_was_given_up_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "choose_plan", lambda _: WindowPlan(1, 12))
    monkeypatch.setattr(speculation, "LEAST_LIKELY", 0.0)
    monkeypatch.setattr(gain, "TRIAL", 1 << 30)
    monkeypatch.setattr(generate, "NgramDrafter", Useless)
    chance = random.Random(9)
    text = [chance.randrange(400) for _ in range(80)]

    async def main():
        async with a_ring(0.005, StepCost(0.05, 0.0), text) as (swarm, client):
            timed = await ask(client, text[:40], 40)
            assert timed.token_ids == text[40:]
            return timed.speculation.steps, [node.engine.forwards for node in swarm.nodes], swarm.violations

    steps, forwards, violations = simulate(1, main)
    assert not violations
    assert steps > 100
    assert max(forwards) < steps, "each hop has run fewer steps than were sent"


@pytest.mark.parametrize(("place", "silent"), [(0, True), (1, False), (2, True)])
def test_a_hop_dies_with_windows_on_their_way(place: int, silent: bool) -> None:
    text = code_like(300)

    async def main():
        async with a_ring(0.05, FAST, text, hops=12) as (swarm, client):
            answer = client.generate("simulated", text[:150], max_tokens=100)
            async for _ in answer:
                if len(answer.token_ids) == 60:
                    peer = answer.route[place].peer
                    swarm.kill(next(n for n in swarm.nodes if n.peer.peer == peer), silent=silent)
            return answer, swarm.violations

    answer, violations = simulate(1, main)
    assert answer.token_ids == text[150:250]
    assert answer.reroutes
    assert not violations
