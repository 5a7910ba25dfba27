"""Never silent for more than two seconds: a bar or a spinner on a terminal, plain lines elsewhere.

All of it goes to stderr, so that a pipe carries the data alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager

from shoal.cli.output import printable, say
from shoal.progress import Progress

EVERY_S = 10.0
"""Seconds between two plain lines about the same step."""


@contextmanager
def working(label: str) -> Generator[Progress]:
    """Show that ``label`` is under way until the block ends; the block may report how far it is."""
    show = _on_terminal if sys.stderr.isatty() else _in_lines
    with show(label) as report:
        yield report


@contextmanager
def _on_terminal(label: str) -> Generator[Progress]:
    from rich import progress as rich
    from rich.console import Console
    from rich.markup import escape

    columns = (
        rich.SpinnerColumn(),
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
    )
    with rich.Progress(
        *columns, rich.TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task(escape(printable(label)), total=None)

        def report(label: str, done: int, total: int) -> None:
            bars.update(task, description=escape(printable(label)), completed=done, total=total or None)

        yield report


@contextmanager
def _in_lines(label: str) -> Generator[Progress]:
    lines = _Lines(label)
    ticker = threading.Thread(target=lines.tick, name="progress", daemon=True)
    ticker.start()
    try:
        yield lines.report
    finally:
        lines.over.set()
        ticker.join()


class _Lines:
    """A line when a step begins, then one every ``EVERY_S`` seconds for as long as it lasts."""

    def __init__(self, label: str) -> None:
        self.over = threading.Event()
        self._label, self._done, self._total = label, 0, 0
        self._since = time.monotonic()
        say(f"{label} …")

    def report(self, label: str, done: int, total: int) -> None:
        self._done, self._total = done, total
        if label != self._label:
            self._label, self._since = label, time.monotonic()
            say(f"{label} …")

    def tick(self) -> None:
        while not self.over.wait(EVERY_S):
            part = f"{100 * self._done // self._total}%, " if self._total else ""
            say(f"{self._label} … {part}{time.monotonic() - self._since:.0f} s")
