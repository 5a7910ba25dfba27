"""Kept runs: what is read again, what is refused, and which differences are changes."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shoal import config
from shoal.bench.kept.comparison import Comparison, change_of, compare_runs
from shoal.bench.kept.document import read_document
from shoal.bench.results import BenchReport, compared, describe_machine, measured_by, of_rounds
from shoal.errors import UsageError
from tests.cli.conftest import Shoal, home, shoal

__all__ = ["home", "shoal"]

SLOW = (10.0, 10.4, 9.8, 10.1, 10.2)
FAST = (12.1, 12.0, 11.8, 12.4, 12.2)


def report(decode: tuple[float, ...], other: tuple[float, ...] = SLOW, **machine: object) -> BenchReport:
    results = [of_rounds("one", "tok/s", decode), of_rounds("llama", "tok/s", other)]
    results.append(of_rounds("first", "s", [1 / value for value in decode]))
    found = compared(results, {"one": {"llama.cpp": "llama"}})
    about = describe_machine(2) | {"bandwidth_bytes_s": 10e9, "ops_per_s": {"bf16": 1e12}} | machine
    return BenchReport("t", about, tuple(found), bench="executor", model={"name": "m", "digest": "sha256:1"})


def kept(file: Path, found: BenchReport, **changes: Any) -> Path:
    file.write_text(json.dumps(found.as_json() | changes))
    return file


def compared_files(tmp_path: Path, a: BenchReport, b: BenchReport) -> Comparison:
    return compare_runs(
        read_document(kept(tmp_path / "a.json", a)), read_document(kept(tmp_path / "b.json", b))
    )


def verdicts(found: Comparison) -> dict[str, str]:
    return {change.name: change.verdict for change in found.changes}


def test_a_run_against_itself_has_no_change(tmp_path: Path) -> None:
    found = compared_files(tmp_path, report(SLOW), report(SLOW))
    assert set(verdicts(found).values()) == {"noise"}
    assert all(change.low <= 1 <= change.high for change in found.changes)


def test_what_became_faster_is_told_with_its_ratio_and_spread(tmp_path: Path) -> None:
    found = compared_files(tmp_path, report(SLOW), report(FAST))
    assert verdicts(found) == {
        "one": "better",
        "one : llama.cpp": "better",
        "llama": "noise",
        "first": "better",
    }
    one = found.changes[0]
    assert (one.a, one.b) == (10.1, 12.1)
    assert one.low == pytest.approx(11.8 / 10.4) and one.high == pytest.approx(12.4 / 9.8)
    assert one.low < one.ratio < one.high
    back = verdicts(compared_files(tmp_path, report(FAST), report(SLOW)))
    assert back == {"one": "worse", "one : llama.cpp": "worse", "llama": "noise", "first": "worse"}


def test_a_slower_machine_is_seen_and_ratios_within_a_run_are_not_touched_by_it(tmp_path: Path) -> None:
    half = tuple(value / 2 for value in SLOW)
    found = compared_files(tmp_path, report(SLOW), report(half, half, bandwidth_bytes_s=5e9))
    assert verdicts(found)["one"] == "worse"
    assert verdicts(found)["one : llama.cpp"] == "noise"
    assert "memory 0.50" in found.notes[2] and "not as fast in both" in found.notes[3]


def test_four_rounds_are_too_few_and_five_that_overlap_in_one_are_noise() -> None:
    assert change_of("x", "tok/s", SLOW[:4], FAST[:4]).verdict == "too few rounds"
    assert change_of("x", "tok/s", SLOW, (*FAST[:4], 10.3)).verdict == "noise"
    assert change_of("x", "tok/s", SLOW * 20, (*FAST[:4], 10.3) * 20).verdict == "better"


def test_of_orders_that_chance_alone_makes_at_most_one_in_a_hundred_is_a_change() -> None:
    """Every order of six and five different values, by the rank test itself."""
    values, changes, orders = range(1, 12), 0, 0
    for chosen in itertools.combinations(values, 6):
        rest = [value for value in values if value not in chosen]
        orders += 1
        changes += change_of("x", "tok/s", chosen, rest).verdict in ("better", "worse")
    assert 0.005 < changes / orders <= 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"machine": describe_machine(2) | {"cpu": "Another CPU"}},
            "different machines: cpu .* Another CPU in B",
        ),
        ({"machine": describe_machine(1)}, "threads 2 in A, 1 in B"),
        ({"bench": "swarm"}, "A is of shoal bench executor, B of shoal bench swarm"),
        ({"model": {"name": "other", "digest": "sha256:2"}}, "A measured m, B other"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path, changes: Any, said: str) -> None:
    a = read_document(kept(tmp_path / "a.json", report(SLOW)))
    b = read_document(kept(tmp_path / "b.json", report(SLOW), **changes))
    with pytest.raises(UsageError, match=said) as caught:
        compare_runs(a, b)
    assert caught.value.check


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "does not hold the results"),
        ("[1]", "does not hold the results"),
        ('{"results": []}', "missing required field `shoal_bench`"),
        ('{"shoal_bench": 9}', "written by a newer Shoal"),
        (
            json.dumps(report(SLOW).as_json() | {"results": [{"name": "one"}]}),
            "missing required field `unit`",
        ),
        (json.dumps(report(SLOW, (1.0, -1.0)).as_json()), "no positive number"),
        (json.dumps(report(SLOW * 30).as_json()), "more than 100 rounds"),
    ],
)
def test_a_file_that_is_broken_is_refused(tmp_path: Path, written: str, said: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(written)
    with pytest.raises(UsageError, match=said) as caught:
        read_document(file)
    assert caught.value.check


@pytest.mark.usefixtures("measured_soon")
def test_results_are_kept_and_compared_from_the_command_line(
    shoal: Shoal, folder: Path, tmp_path: Path
) -> None:
    kept_in = tmp_path / "a.json"
    options = ("--model", str(folder), "--rounds", "1", "--threads", "1", "--format", "int8")
    ran = shoal("bench", "executor", *options, "--save", str(kept_in))
    assert ran.code == 0 and "shoal bench compare" in ran.err
    shown = shoal("bench", "compare", str(kept_in), str(kept_in), "--json")
    assert shown.code == 0
    names = [change["name"] for change in shown.data["changes"]]
    assert names[:3] == ["executor/int8/decode/b1", "executor/int8/decode/b8", "executor/int8/decode/b8 : b1"]
    assert {change["verdict"] for change in shown.data["changes"]} == {"too few rounds"}
    table = shoal("bench", "compare", str(kept_in), str(kept_in))
    assert "B against A" in table.out and "too few rounds" in table.out


def test_a_file_that_cannot_be_read_or_written_is_an_error_before_anything_runs(
    shoal: Shoal, tmp_path: Path
) -> None:
    ran = shoal("bench", "compare", str(tmp_path / "none.json"), str(tmp_path / "none.json"), "--json")
    assert ran.code != 0 and "cannot be read" in ran.out
    ran = shoal("bench", "device", "--save", str(tmp_path / "no" / "x.json"), "--json")
    assert ran.code != 0 and "there is no folder" in ran.out


def test_runs_by_other_settings_or_through_more_nodes_are_not_compared(tmp_path: Path) -> None:
    ours, sparse = config.load({}, {}), config.load({"kv": "int8", "wire": "int8"}, {})
    plain = replace(report(SLOW), conditions=measured_by(ours, 3))
    assert verdicts(compared_files(tmp_path, plain, plain))["one"] == "noise"
    for other, named in ((measured_by(ours, 5), "nodes 3 in A, 5 in B"), (measured_by(sparse, 3), "kv auto")):
        with pytest.raises(UsageError, match=named):
            compared_files(tmp_path, plain, replace(report(SLOW), conditions=other))
    older = replace(report(SLOW), conditions={})  # of a file that says nothing of them
    assert verdicts(compared_files(tmp_path, older, plain))["one"] == "noise"


def test_a_ratio_is_the_median_of_the_rounds_own() -> None:
    slow, fast = of_rounds("a", "tok/s", (10.0, 40.0, 20.0)), of_rounds("b", "tok/s", (20.0, 20.0, 20.0))
    (found, _) = compared([slow, fast], {"a": {"b": "b"}})
    assert found.vs == {"b": 1.0}
    assert found.value / fast.value == 1.0
    (found, _) = compared([slow, of_rounds("b", "tok/s", (5.0, 40.0, 40.0))], {"a": {"b": "b"}})
    assert found.vs == {"b": 1.0}
    (found, _) = compared([slow, of_rounds("b", "tok/s", (5.0, 40.0))], {"a": {"b": "b"}})
    assert found.vs == {"b": 20.0 / 22.5}
