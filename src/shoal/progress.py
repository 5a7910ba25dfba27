"""How long steps tell how far they are. Nothing here prints: the CLI draws the bars."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with a label, what is done and the total, from any thread; a total of 0 is not known yet."""


def silent(label: str, done: int, total: int) -> None:
    """For callers that do not look."""
