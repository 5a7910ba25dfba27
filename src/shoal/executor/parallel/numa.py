"""Which cores belong to which memory: each process of a span stays beside its own part of the weights.

Memory is taken beside the core that first writes to it: a process that is kept on the cores of one NUMA node
before it loads has its weights and its keys and values there.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")


def stay_beside(rank: int, ranks: int) -> None:
    """Keep this thread, and those that it starts from now on, on a rank's share of the NUMA nodes.

    Where there are fewer nodes than ranks, or the system does not tell, the threads go where they like.
    """
    if sys.platform != "linux":
        return
    cores = share(numa_nodes(NODES), frozenset(os.sched_getaffinity(0)), rank, ranks)
    if cores:
        os.sched_setaffinity(0, cores)


def share(
    nodes: Sequence[frozenset[int]], allowed: frozenset[int], rank: int, ranks: int
) -> frozenset[int] | None:
    """The cores of a rank: of its share of the nodes that have any; ``None`` where there are too few.

    Args:
        nodes: the cores of each NUMA node.
        allowed: the cores that this process may use.
    """
    usable = [cores for node in nodes if (cores := node & allowed)]
    if len(usable) < ranks:
        return None
    first, end = (len(usable) * at // ranks for at in (rank, rank + 1))
    return frozenset().union(*usable[first:end])


def numa_nodes(folder: Path) -> list[frozenset[int]]:
    """The cores of each NUMA node, as Linux lists them in ``folder``; empty where it does not."""
    found: list[frozenset[int]] = []
    for path in sorted(folder.glob("node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:])):
        found.append(parse_cores(path.read_text("ascii")))
    return found


def parse_cores(text: str) -> frozenset[int]:
    """The cores of ``"0-3,8"``."""
    cores: set[int] = set()
    for piece in text.strip().split(","):
        first, _, last = piece.partition("-")
        if first:
            cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)
