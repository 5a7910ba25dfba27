"""`shoal doctor`: check this machine's setup, and say how to fix what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from shoal.cli import options
from shoal.cli.doctor import checks
from shoal.cli.doctor.finding import Finding
from shoal.cli.output import emit
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.errors import EXIT_FAILURE, UsageError

if TYPE_CHECKING:
    from rich.table import Table

MARKS = {"ok": "ok", "note": "note", "fail": "FAIL"}
COLOURS = {"ok": "green", "note": "yellow", "fail": "bold red"}


def register(app: typer.Typer) -> None:
    app.command()(doctor)


def doctor(as_json: options.JsonOption = False) -> None:
    """Check this machine's setup. Each failing check names its fix."""
    found: list[Finding] = []
    try:
        settings = options.settings()
    except UsageError as error:
        # A broken config.toml is a finding like the others, which go on with the defaults.
        found.append(Finding("config", "fail", error.message, error.check))
        settings = Settings()
    names = [name for name in checks.CHECKS if name not in {finding.name for finding in found}]
    with working("checking this machine") as report:
        for number, name in enumerate(names):
            report("checking this machine", number, len(names))
            found.append(checks.run(name, settings))
    healthy = all(finding.verdict != "fail" for finding in found)
    emit({"healthy": healthy, "checks": found}, as_json, lambda: table(found))
    if not healthy:
        raise typer.Exit(EXIT_FAILURE)


def table(found: Sequence[Finding]) -> Table:
    """One line a check; the fix stands where something is to be done."""
    from rich.table import Table
    from rich.text import Text

    rows = Table(box=None, pad_edge=False)
    for heading in ("check", "", "found", "fix"):
        rows.add_column(heading, overflow="fold")
    for finding in found:
        mark = Text(MARKS[finding.verdict], style=COLOURS[finding.verdict])
        rows.add_row(Text(finding.name), mark, Text(finding.detail), Text(finding.fix))
    return rows
