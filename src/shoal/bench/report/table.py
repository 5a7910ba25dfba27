"""A report for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table

from shoal.bench.results import BenchReport, Measurement


def table(report: BenchReport) -> RenderableType:
    """Results with spread, part of the roofline, prediction and ratios; then what must be known of them."""
    shown = Table(title=report.title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    shown.add_column("measured", no_wrap=True)  # a name that is cut tells nothing; figures may wrap
    for name in ("median", "spread", "predicted", "of roofline"):
        shown.add_column(name, justify="right")
    shown.add_column("against")
    for result in report.results:
        shown.add_row(*_cells(result))
    return Group(shown, *report.notes)


def _cells(result: Measurement) -> tuple[str, ...]:
    against = ", ".join(f"{ratio:.2f} × {name}" for name, ratio in result.vs.items())
    return (
        result.name,
        f"{result.value:.4g} {result.unit}",
        f"{result.min:.4g} – {result.max:.4g}",
        "" if result.predicted is None else f"{result.predicted:.4g}",
        "" if result.of_roofline is None else f"{result.of_roofline:.0%}",
        against,
    )
