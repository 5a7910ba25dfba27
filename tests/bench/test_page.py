"""The report: one file that needs nothing else, well formed, with the plots that its results allow."""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from shoal.bench.report.losses import MOST_POINTS, losses_plot
from shoal.bench.report.page import page
from shoal.bench.report.plots import against_sessions, curves, points_of
from shoal.bench.report.svg import Scale, above, nice_step, short
from shoal.bench.report.table import table
from shoal.bench.results import BenchReport, Expected, HopSplit, Measurement, StepSplit, describe_machine
from shoal.planning.roofline import Estimate

MACHINE = {**describe_machine(2), "bandwidth_bytes_s": 30e9, "ops_per_s": {"fp32": 165e9, "int8": 240e9}}


def speed(name: str, value: float, tokens: int = 1) -> Measurement:
    expected = Expected(Estimate(0.05, "memory", bytes=1e9, ops=2e9 * tokens), tokens)
    return Measurement(name, value, "tok/s", value * 0.9, value * 1.1, expected, {"a <peer> & co": 1.5})


def report(**changes: object) -> BenchReport:
    results = (speed("executor/int8/decode/b1", 15), speed("executor/int8/decode/b8", 70, 8))
    steps = (StepSplit(1, (HopSplit("0:2", 1.0, 0.2, 0.1), HopSplit("client", 0.3, 0.2, 0.0))),)
    fields: dict[str, object] = {
        "machine": MACHINE,
        "results": results,
        "steps": steps,
        "notes": ("so it is",),
    }
    return BenchReport("Title <of it>", **(fields | changes))  # pyright: ignore[reportArgumentType]


def svgs(html: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]


def test_the_page_is_well_formed_and_asks_for_nothing_from_elsewhere() -> None:
    html = page(report())
    ET.fromstring(re.sub(r"<!doctype html>|<meta[^>]*>", "", html))
    assert "<script" not in html and "@import" not in html
    assert re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s]+)""", html) == []
    assert "&lt;of it&gt;" in html and "a &lt;peer&gt; &amp; co" in html
    assert "prefers-color-scheme: dark" in html


def test_the_page_draws_what_was_measured() -> None:
    assert len(svgs(page(report()))) == 3
    assert len(svgs(page(report(steps=())))) == 2
    perplexity = (Measurement("accuracy/bf16", 21, "perplexity", 21, 21),)
    assert svgs(page(report(machine=describe_machine(2), results=perplexity, steps=()))) == []


def test_every_measurement_stands_under_the_roof_at_its_intensity() -> None:
    one, eight = points_of(report().results)
    assert (one.series, one.label, one.intensity, one.ops) == ("executor/int8", "b1", 2.0, 30e9)
    assert (eight.label, eight.intensity, eight.ops) == ("b8", 16.0, 140e9)


def test_curves_are_decoding_speeds_by_what_was_measured() -> None:
    found = curves([*report().results, speed("one/bf16/prefill/512", 5)])
    assert {series: [count for count, _ in points] for series, points in found.items()} == {
        "executor/int8": [1, 8]
    }
    assert against_sessions(report().results).svg().count("<circle") == 2


@pytest.mark.parametrize(
    ("value", "shown"), [(30e9, "30G"), (1234, "1.23k"), (0.5, "0.5"), (5.12e11, "512G")]
)
def test_numbers_on_axes_are_short(value: float, shown: str) -> None:
    assert short(value) == shown


def test_axes_end_at_round_numbers_above_all_values() -> None:
    assert [nice_step(value) for value in (1, 1.5, 3, 7, 0.03)] == [1, 2, 5, 10, 0.05]
    assert all(above(value) >= value for value in (0.07, 1, 99.5, 100, 1234))
    assert Scale(0, above(240), 0, 100).ticks() == [0, 50, 100, 150, 200, 250]
    assert Scale(0.3, 2000, 0, 100, log=True).ticks() == [1, 10, 100, 1000]


def test_a_terminal_shows_spread_prediction_and_ratios() -> None:
    said = io.StringIO()
    Console(file=said, width=200).print(table(report()))
    for words in ("15 tok/s", "13.5 – 16.5", "75%", "20", "1.50 × a <peer> & co", "so it is"):
        assert words in said.getvalue()


def test_in_a_narrow_terminal_names_are_whole_and_figures_wrap() -> None:
    said = io.StringIO()
    Console(file=said, width=80).print(table(report()))
    assert "executor/int8/decode/b8" in said.getvalue() and "…" not in said.getvalue()


def test_losses_that_are_many_flat_single_or_not_finite_are_drawn_all_the_same():
    long = losses_plot([(step, 1 / step) for step in range(1, 3002)])
    assert long is not None
    assert "after 3,001 steps" in long
    assert max(line.count(",") for line in re.findall(r'points="[^"]*"', long)) <= MOST_POINTS + 1
    for losses in ([(1, 0.0)], [(1, float("nan")), (2, 3.0)], [(5, 2.0), (6, 2.0)]):
        assert losses_plot(losses, [(losses[-1][0], 2.0)]) is not None
    assert losses_plot([(1, float("nan"))]) is None
