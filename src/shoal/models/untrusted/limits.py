"""What a process that reads what strangers wrote may take of its machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

_COLUMNS = {"AS": 0, "DATA": 5}
"""Of ``/proc/self/statm``, in pages."""


def limit_memory(more: int | None, kind: Literal["AS", "DATA"] = "AS") -> None:
    """Let this process's memory grow by so many bytes from now on; ``None``: by any number.

    Args:
        kind: of the address space as a whole, or of what is written to, without files that are only mapped.
    """
    try:
        import resource  # noqa: PLC0415 - not on Windows, where the deadline alone must do
    except ImportError:
        return
    which = getattr(resource, f"RLIMIT_{kind}")
    _, hard = resource.getrlimit(which)
    try:
        pages = Path("/proc/self/statm").read_text().split()[_COLUMNS[kind]]
        taken = int(pages) * resource.getpagesize()
    except OSError:
        taken = 0  # no Linux: the imports count as well
    limit = hard if more is None else taken + more
    resource.setrlimit(which, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def first_to_go() -> None:
    """Where a machine's memory is full, let Linux end this process rather than one that works."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
