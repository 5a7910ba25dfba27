"""What is done to a swarm between homes while it is asked, and what not. Pure: chance is an argument."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from random import Random
from typing import Literal

from shoal.types import Span

DeedKind = Literal["kill", "forget", "offline"]
"""``kill`` a node, which is a relay too where it is public; have its router ``forget`` all connections; take
its network ``offline``."""
LEFT = 2
"""Nodes of each block to which nothing is done meanwhile."""
HARMED_SHARE = 1 / 3
"""Of all nodes, what is gone or unreachable at once at the most: on a busy machine one that was killed takes
a minute to serve again, and most others would be gone by then."""


@dataclass(frozen=True, slots=True)
class Deed:
    """One of them."""

    do: DeedKind
    host: str


def choose_deed(
    random: Random,
    spans: Mapping[str, Span],
    routed: Collection[str],
    public: Collection[str],
    harmed: Collection[str],
) -> Deed | None:
    """What is done next; ``None`` where anything would take away what answers need.

    Args:
        spans: what each host's node serves.
        routed: hosts behind routers.
        public: hosts that relay for them, of which one stays.
        harmed: hosts whose nodes are gone or unreachable now.
    """
    well = [host for host in spans if host not in harmed]
    few = len(spans) - len(well) < HARMED_SHARE * len(spans)
    kind: DeedKind = random.choice(("kill", "forget", "offline"))
    if kind == "forget":
        candidates = [host for host in well if host in routed]
    else:
        candidates = [host for host in well if few and _bears(host, spans, public, well)]
    return Deed(kind, random.choice(candidates)) if candidates else None


def _bears(host: str, spans: Mapping[str, Span], public: Collection[str], well: Collection[str]) -> bool:
    """Whether enough is left without a host."""
    others = [other for other in well if other != host]
    span = spans[host]
    left = min(sum(block in spans[other] for other in others) for block in range(span.start, span.end))
    return left >= LEFT and any(other in public for other in others)
