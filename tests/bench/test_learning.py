"""A small model that processes train from scratch, by several ways: bytes and losses side by side."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from shoal.bench.learning import measure
from shoal.bench.learning.measure import LearningBench, chosen_ways, learning_table
from shoal.bench.learning.member import is_looked_at
from shoal.bench.learning.plot import learning_plot
from shoal.cli.main import run
from shoal.errors import UsageError


def test_two_processes_train_by_demo_with_a_fiftieth_of_the_bytes_of_all_reduce(tmp_path, capsys):
    """As a person has it measured; a short run, which shows the bytes and that all learn."""
    plot = tmp_path / "losses.svg"
    options = ["--members", "2", "--steps", "20", "--kept", "8", "--demo-rate", "3e-3", "--plot", str(plot)]
    ways = ["--way", "demo", "--way", "all-reduce"]
    assert run(["bench", "learning", *options, *ways, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    full, demo = found["ways"]
    assert (full["way"], demo["way"]) == ("all-reduce", "demo")
    assert full["bytes_per_step"] == pytest.approx(2 * found["parameters"])  # of two members, all in bf16
    assert demo["less"] > 50
    for way in (full, demo):
        assert way["curve"][-1][1] < way["curve"][0][1] - 0.3
    assert "all-reduce" in learning_table(found)
    assert ET.fromstring(plot.read_text()).tag.endswith("svg")


def test_a_plot_has_a_line_for_each_way():
    ways = [
        {"way": way, "bytes_per_step": 1e4, "held_back": last, "curve": [[1, 4.0], [2, last]]}
        for way, last in (("all-reduce", 2.0), ("demo", 2.05), ("int8", 2.1))
    ]
    drawn = learning_plot({"steps": 2, "ways": ways})
    assert drawn.count("<polyline") >= 3
    assert all(way["way"] in drawn for way in ways)


def test_a_way_that_is_none_is_refused():
    with pytest.raises(UsageError, match="there is no way zip"):
        chosen_ways(["zip"])
    assert chosen_ways(()) == measure.WAYS


def test_steps_that_are_no_whole_rounds_of_a_way_are_refused_before_any_is_made(capsys):
    assert run(["bench", "learning", "--steps", "50", "--way", "all-reduce", "--way", "int8"]) == 2
    assert "50 steps are no whole rounds of 20 by int8" in capsys.readouterr().err
    for whole in (LearningBench(steps=50, local_steps=25), LearningBench(steps=20, local_steps=30)):
        measure._check_rounds(whole)


def test_the_last_loss_is_taken_at_the_end():
    assert [number for number in range(1, 46) if is_looked_at(number, 45)] == [*range(2, 45, 2), 45]
    assert all(is_looked_at(number, 3) for number in (1, 2, 3))


def test_what_is_measured_has_terms_that_hold():
    asked = LearningBench(steps=60, local_steps=20)
    assert [measure._terms(asked, way, 100).rounds for way in ("demo", "none", "int8")] == [60, 3, 3]
