"""The built-in plans: the same for the same seed, and everything that is to be shown is in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import UsageError
from shoal.testing.lab.plan import ANSWER, Place
from shoal.testing.lab.schedule import (
    DRAIN_S,
    RESTART_S,
    HopReplicas,
    PromptLengths,
    churn_run,
    covered_without,
    even_nodes,
    freeze_runs,
    kill_runs,
)
from shoal.types import Span

STAGES = [HopReplicas(Span(0, 2), 2), HopReplicas(Span(2, 4), 3), HopReplicas(Span(4, 6), 2)]
PROMPTS = [PromptLengths(10, 48), PromptLengths(150, 30), PromptLengths(400, 3)]
PLACES = [Place(f"{s}{n}", Span(2 * s, 2 * s + 2)) for s in range(3) for n in range(2)]


def test_the_same_seed_makes_the_same_runs_and_another_seed_others() -> None:
    assert kill_runs(7, STAGES, PROMPTS, 50) == kill_runs(7, STAGES, PROMPTS, 50)
    assert kill_runs(7, STAGES, PROMPTS, 50) != kill_runs(8, STAGES, PROMPTS, 50)
    assert churn_run(7, PLACES, 5, 4) == churn_run(7, PLACES, 5, 4) != churn_run(8, PLACES, 5, 4)


def test_every_hop_is_killed_in_the_prefill_and_in_the_answer() -> None:
    runs = kill_runs(0, STAGES, PROMPTS, 24)
    single = [run.events[0] for run in runs if len(run.events) == 1 and len(run.events[0].hops) == 1]
    assert {(e.hops[0], e.token is None) for e in single} == {(h, p) for h in range(3) for p in (False, True)}
    together = [run.events[0] for run in runs if run.events[0].hops == [0, 2]]
    assert {event.token is None for event in together} == {False, True}


def test_a_replacement_is_killed_too_where_there_is_a_third_node() -> None:
    runs = [run for run in kill_runs(0, STAGES, PROMPTS, 24) if "replacement" in run.name]
    assert runs
    for run in runs:
        first, second = run.events
        assert first.hops == second.hops == [1]
        assert first.token < second.token  # type: ignore[operator]


def test_all_nodes_of_a_block_are_killed_once_for_good_and_once_to_return() -> None:
    runs = kill_runs(0, STAGES, PROMPTS, 24)
    gone = [run for run in runs if run.expect != ANSWER]
    back = [run for run in runs if run.expect == ANSWER and run.events[0].block is not None]
    assert {(run.expect, run.events[0].for_s) for run in gone} == {("no_coverage", None)}
    assert {run.events[0].for_s for run in back} == {0.0}


@given(st.integers(0, 1 << 32), st.integers(8, 60))
def test_an_answer_is_hit_while_it_goes_on(seed: int, tokens: int) -> None:
    for run in kill_runs(seed, STAGES, [PromptLengths(10, tokens)], 12):
        assert all(event.token is None or 1 <= event.token < tokens for event in run.events)


def test_a_prefill_is_hit_with_the_longest_prompt_whose_answer_goes_on() -> None:
    runs = [run for run in kill_runs(0, STAGES, PROMPTS, 24) if run.events[0].prefill_s is not None]
    assert {run.prompt for run in runs} == {1}


def test_answers_that_are_too_short_are_no_ground_for_a_plan() -> None:
    with pytest.raises(UsageError, match="8 tokens or more"):
        kill_runs(0, STAGES, [PromptLengths(10, 7)], 4)


def test_a_swarm_without_replicas_can_only_lose_a_block() -> None:
    alone = [HopReplicas(Span(0, 6), 1)]
    assert {run.events[0].block for run in kill_runs(0, alone, PROMPTS, 8)} == {0}
    with pytest.raises(UsageError, match="second node"):
        freeze_runs(0, alone, PROMPTS, 4)


def test_every_hop_is_frozen_for_long_and_briefly() -> None:
    runs = freeze_runs(0, STAGES, PROMPTS, 24)
    assert {event.do for run in runs for event in run.events} == {"freeze"}
    assert {(run.events[0].hops[0], run.events[0].for_s is None) for run in runs} >= {
        (hop, forever) for hop in range(3) for forever in (True, False)
    }


def test_the_middle_span_can_lose_two_hops_and_churn_has_a_node_that_joins() -> None:
    spans = [Span(0, 2), Span(2, 4), Span(4, 6)]
    assert [row.replicas for row in even_nodes("kill", spans, 2)] == [2, 3, 2]
    assert [row.replicas for row in even_nodes("freeze", spans, 2)] == [2, 2, 2]
    assert [row.spare for row in even_nodes("churn", spans, 2)] == [False, False, False, True]


@given(st.integers(0, 1 << 32))
def test_churn_never_takes_a_blocks_last_node(seed: int) -> None:
    spare = Place("spare", Span(0, 6), spare=True)
    places = [*PLACES, spare]
    run = churn_run(seed, places, 5, 4)
    assert run.guarded
    away: dict[str, float] = {}
    here = {place.name for place in PLACES}
    for event in run.events:
        now = event.time_s or 0.0
        (name,) = event.names
        if event.do == "revive":
            here.add(name)
            away[name] = now + RESTART_S
            continue
        there = [p for p in places if p.name in here and away.get(p.name, 0.0) <= now + 0.1]
        hit = next(place for place in there if place.name == name)
        assert covered_without(hit, [place for place in there if place != hit])
        away[name] = now + (event.for_s or 0.0) + RESTART_S + (DRAIN_S if event.do == "stop" else 0.0)


def test_churn_kills_stops_freezes_and_joins_for_as_long_as_it_lasts() -> None:
    run = churn_run(3, [*PLACES, Place("spare", Span(0, 6), spare=True)], 5, 4)
    assert {event.do for event in run.events} == {"kill", "stop", "freeze", "revive"}
    times = [event.time_s or 0.0 for event in run.events]
    assert times == sorted(times)
    assert 250 < times[-1] < 300
    assert len(times) > 20
