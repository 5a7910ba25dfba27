"""Plan files: what one says, and what a bad one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.testing.lab.plan import Event, LabPlan, NodeGroup, Run, places, read, runs_of
from shoal.types import Span

TOML = """
model = "folder/of/a/model"
prompts = ["The sea is", [5, 6, 7]]
max_tokens = 20
gap_s = 4

[[nodes]]
span = "0:4"
replicas = 2

[[nodes]]
name = "tail"
span = "4:6"

[[nodes]]
span = "4:6"
spare = true

[[runs]]
prompt = 1
events = [{do = "kill", hop = [0, 1], token = 3}, {do = "freeze", node = "tail", time_s = 1.5, for_s = 2}]

[[runs]]
expect = "no_coverage"
events = [{do = "kill", block = 5, prefill_s = 0.1}]
"""


def written(folder: Path, text: str, name: str = "plan.toml") -> Path:
    path = folder / name
    path.write_text(text, "utf-8")
    return path


def test_a_plan_says_which_nodes_prompts_runs_and_events_there_are(tmp_path: Path) -> None:
    plan = read(written(tmp_path, TOML))
    assert plan.prompts == ["The sea is", [5, 6, 7]]
    first, second = runs_of(plan)
    assert first.events[0].hops == [0, 1]
    assert first.events[1] == Event(do="freeze", node="tail", time_s=1.5, for_s=2)
    assert (second.expect, second.events[0].block) == ("no_coverage", 5)
    found = [(place.name, str(place.span), place.spare) for place in places(plan, 6)]
    assert found == [("a1", "0:4", False), ("a2", "0:4", False), ("tail", "4:6", False), ("c", "4:6", True)]


def test_the_same_plan_may_be_json(tmp_path: Path) -> None:
    values = {"prompts": ["x"], "events": [{"do": "kill", "hop": 0, "token": 2}]}
    plan = read(written(tmp_path, json.dumps(values), "plan.json"))
    assert runs_of(plan) == [Run(name="events", events=[Event(do="kill", hop=0, token=2)])]


def test_without_nodes_the_built_in_ones_serve() -> None:
    found = places(LabPlan(), 4, [NodeGroup(span="0:2", replicas=2), NodeGroup(span="2:4")])
    assert [place.name for place in found] == ["a1", "a2", "b"]
    assert found[0].span == Span(0, 2)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model = ", "is not TOML"),
        ("modle = 'x'", "unknown field `modle`"),
        ("max_tokens = 0", r"\$.max_tokens"),
        ("prompts = [1.5]", r"\$.prompts\[0\]"),
        ("events = [{do = 'explode', hop = 0, token = 1}]", r"\$.events\[0\].do"),
        ("events = [{do = 'kill', token = 1}]", "give one of node, hop and block"),
        ("events = [{do = 'kill', hop = 0, node = 'a', token = 1}]", "give one of node, hop and block"),
        ("events = [{do = 'kill', hop = 0}]", "give one of token, prefill_s and time_s"),
        ("events = [{do = 'kill', hop = 0, token = 32}]", "an answer of 32 tokens is over"),
        ("events = [{do = 'revive', hop = 0, token = 1}]", "named with node"),
        ("prompts = ['a']\nruns = [{prompt = 1}]", "there is no prompt 1"),
    ],
)
def test_a_bad_plan_is_told_where_it_is_bad(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        read(written(tmp_path, text))
    assert str(tmp_path) in caught.value.message


def test_a_plan_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        read(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="is not JSON"):
        read(written(tmp_path, "[" * 100_000, "deep.json"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read(tmp_path / "bytes.toml")


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (LabPlan(nodes=[NodeGroup(span="0-6")]), "START:END"),
        (LabPlan(nodes=[NodeGroup(span="0:7")]), "the model has blocks 0:6, not 0:7"),
        (LabPlan(nodes=[NodeGroup(span="0:2"), NodeGroup(span="3:6")]), "no node serves blocks 2:3 of 6"),
        (LabPlan(nodes=[NodeGroup(span="0:6", spare=True)]), "no node serves blocks 0:6"),
        (
            LabPlan(nodes=[NodeGroup(span="0:6", name="x"), NodeGroup(span="0:6", name="x")]),
            "two nodes are called 'x'",
        ),
        (LabPlan(nodes=[NodeGroup(span="0:6", replicas=64), NodeGroup(span="0:6")]), "too many"),
        (
            LabPlan(nodes=[NodeGroup(span="0:6")], events=[Event(do="kill", node="b", token=1)]),
            "for node 'b'",
        ),
        (LabPlan(nodes=[NodeGroup(span="0:6")], events=[Event(do="kill", block=6, token=1)]), "for block 6"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(plan: LabPlan, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        places(plan, 6)
