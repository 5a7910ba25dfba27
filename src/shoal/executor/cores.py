"""How many threads a forward takes unless somebody says so."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil

CPUS = Path("/sys/devices/system/cpu")


def usable_cores() -> int:
    """The cores that this process may compute on; at least 1.

    Two threads that share a core share its arithmetic too: they count once.
    """
    if sys.platform != "linux":
        return psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return cores_of(os.sched_getaffinity(0), CPUS)


def cores_of(allowed: set[int], folder: Path) -> int:
    """How many cores the CPUs of ``allowed`` are, as Linux says in ``folder``; one each where it does not."""
    cores: set[str] = set()
    for cpu in allowed:
        siblings = folder / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text("ascii"))
        except OSError:
            cores.add(str(cpu))
    return len(cores)
