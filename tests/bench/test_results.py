"""Results: medians of turns, ratios, and the JSON that programs read."""

from __future__ import annotations

import json

from shoal.bench.peers.measure import forgiving
from shoal.bench.results import (
    BenchReport,
    Contender,
    Expected,
    HopSplit,
    Measurement,
    StepSplit,
    compared,
    describe_machine,
    in_turns,
)
from shoal.errors import ShoalError
from shoal.planning.roofline import Estimate

QUARTER = Expected(Estimate(0.25, "memory", bytes=100.0, ops=200.0), tokens=8)
"""At most 32 tokens a second."""


def silent(label: str, done: int, total: int) -> None:
    pass


async def test_contenders_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []

    def contender(name: str, values: list[float]) -> Contender:
        async def run() -> float:
            turns.append(name)
            return values.pop(0)

        return Contender(name, "tok/s", run)

    found = await in_turns([contender("a", [99, 3, 1, 2]), contender("b", [99, 10, 30, 20])], 3, silent)
    assert "".join(turns) == "abababab"
    assert [(r.name, r.value, r.min, r.max) for r in found] == [("a", 2, 1, 3), ("b", 20, 10, 30)]


async def test_another_program_that_fails_is_noted_and_does_not_end_the_run() -> None:
    said: list[str] = []
    fate: list[float | Exception] = [9, ShoalError("torn"), 4, ExceptionGroup("", [ShoalError("gone")]), 5]

    async def run() -> float:
        got = fate.pop(0)
        if isinstance(got, Exception):
            raise got
        return got

    (found,) = await in_turns([forgiving(Contender("a", "tok/s", run), said)], 5, silent)
    assert (found.min, found.max) == (4, 4)
    assert said == ["a failed: torn", "a failed: gone"]
    assert fate == [5]  # it is asked no more


def test_a_result_says_its_ratio_to_what_was_measured_beside_it() -> None:
    results = [Measurement("a", 30, "tok/s", 30, 30), Measurement("b", 20, "tok/s", 20, 20)]
    pairs = {"a": {"the other": "b", "nobody": "c"}}
    assert [dict(r.vs) for r in compared(results, pairs)] == [{"the other": 1.5}, {}]


def test_the_json_of_a_report_has_the_fields_that_programs_read() -> None:
    split = StepSplit(8, (HopSplit("0:2", 1.0, 0.25, 0.5),))
    vs, against = {"llama.cpp Q8_0": 2.1}, {"llama.cpp Q8_0": "llama.cpp/Q8_0/decode/b8"}
    rounds = (15.0, 16.00049, 17.0)
    fast = Measurement("executor/int8/decode/b8", 16.00049, "tok/s", 15, 17, QUARTER, vs, against, rounds)
    report = BenchReport(
        "t", describe_machine(2), (fast, Measurement("accuracy/bf16", 21, "perplexity", 21, 21)), (split,)
    )
    shown = json.loads(json.dumps(report.as_json()))
    assert shown["machine"]["threads"] == 2
    assert shown["results"] == [
        {
            "name": "executor/int8/decode/b8",
            "value": 16.0,
            "unit": "tok/s",
            "min": 15,
            "max": 17,
            "of_roofline": 0.5,
            "rounds": [15, 16, 17],
            "vs": {"llama.cpp Q8_0": 2.1},
            "against": {"llama.cpp Q8_0": "llama.cpp/Q8_0/decode/b8"},
        },
        {
            "name": "accuracy/bf16",
            "value": 21,
            "unit": "perplexity",
            "min": 21,
            "max": 21,
            "of_roofline": None,
            "rounds": [],
            "vs": {},
            "against": {},
        },
    ]
    assert shown["predictions"] == {"executor/int8/decode/b8": 32}
    hop = {"hop": "0:2", "compute_ms": 1.0, "network_ms": 0.25, "waiting_ms": 0.5}
    assert shown["steps"] == [{"sessions": 8, "hops": [hop]}]
