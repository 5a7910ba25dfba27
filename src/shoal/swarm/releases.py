"""Which releases peers run, and whether this machine's is behind. What peers say of it is their word."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

_AGENT = re.compile(r"shoal/(\d{1,6})\.(\d{1,6})")
LEAST_PEERS = 2
"""One peer alone sends nobody to upgrade."""


def releases(agents: Iterable[str]) -> dict[str, int]:
    """How many peers run each release, by the name that they announce, the newest first."""
    counts = Counter(agents)
    return {agent: counts[agent] for agent in sorted(counts, key=lambda a: (_number(a), a), reverse=True)}


def behind(own: str, others: Iterable[str]) -> str:
    """That most other peers run a newer release, in a sentence; empty where they do not.

    Args:
        own: this machine's, as ``AGENT`` is written.
        others: what peers announce.
    """
    heard = list(others)
    newer = [number for number in map(_number, heard) if number > _number(own)]
    if len(newer) < LEAST_PEERS or len(newer) * 2 <= len(heard):
        return ""
    major, minor = Counter(newer).most_common(1)[0][0]
    share = f"{len(newer)} of {len(heard)} peers"
    return f"this machine runs {own}, {share} a newer release, such as {major}.{minor}: upgrade it"


def _number(agent: str) -> tuple[int, int]:
    found = _AGENT.match(agent)
    return (int(found[1]), int(found[2])) if found else (0, 0)
