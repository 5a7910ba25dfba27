"""A comparison for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from shoal.bench.kept.comparison import ONE_IN, Change, Comparison

STYLES = {"better": "green", "worse": "red", "noise": "dim", "too few rounds": "dim"}


def comparison_table(found: Comparison) -> RenderableType:
    """Each result of both runs with its ratio and what to make of it; then what must be known of them."""
    shown = Table(
        title=f"shoal bench {found.bench}: B against A", title_justify="left", box=None, pad_edge=False
    )
    shown.add_column("measured", no_wrap=True)  # a name that is cut tells nothing; figures may wrap
    for name in ("A", "B", "B : A", "between"):
        shown.add_column(name, justify="right")
    shown.add_column("change")
    for change in found.changes:
        shown.add_row(*_cells(change))
    return Group(shown, *map(escape, _lines(found)))


def _cells(change: Change) -> tuple[str, ...]:
    style = STYLES[change.verdict]
    return (
        escape(change.name),
        escape(f"{change.a:.4g} {change.unit}".rstrip()),
        escape(f"{change.b:.4g} {change.unit}".rstrip()),
        f"{change.ratio:.3f}",
        f"{change.low:.3f} – {change.high:.3f}",
        f"[{style}]{change.verdict}[/{style}]",
    )


def _lines(found: Comparison) -> list[str]:
    counts = [f"{sum(c.verdict == verdict for c in found.changes)} {verdict}" for verdict in STYLES]
    said = [", ".join(counts), *found.notes]
    if found.only_a:
        said.append(f"only in A: {', '.join(found.only_a)}")
    if found.only_b:
        said.append(f"only in B: {', '.join(found.only_b)}")
    said.append(f"Of results that did not change, one in {ONE_IN} is called better or worse")
    return said
