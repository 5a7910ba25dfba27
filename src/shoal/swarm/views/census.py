"""How many peers a swarm has, and each of its models: counted, or as others say. Pure."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from shoal.swarm.announcement import Announcement
from shoal.swarm.views.partial_view import PartialView
from shoal.swarm.views.rules import BELIEVED_EACH, FEW_SHARE, SwarmCount


@dataclass(frozen=True, slots=True)
class Census:
    """What a member knows of numbers."""

    count: SwarmCount = field(default_factory=lambda: SwarmCount(0, 0, 0))
    by_model: Mapping[str, int] = field(default_factory=dict[str, int])
    overlapping: bool = False
    """Whether anybody is known who hears the swarm's topic alone, of a model that counts as one."""
    models: int = 1
    """By which members share the swarm's topic."""

    def of(self, digest: str) -> int:
        """Peers of a model; at least one."""
        return max(1, self.by_model.get(digest, 1))


def take_census(alive: Iterable[Announcement], view: PartialView | None, now: float) -> Census:
    """Count.

    A member of a large swarm says how many peers its model has. Of models whose peers are not all heard of
    here, the median of what they say counts, as far as it is believed: one may have many names. Nor does each
    make a whole model: those of which few peers are known count for a part of all.

    Args:
        alive: all announcements that a member has.
        view: what it keeps; ``None`` while the swarm is a small one.
    """
    said: defaultdict[str, list[int]] = defaultdict(list)
    for announcement in alive:
        if announcement.served is not None:
            said[announcement.served.digest].append(announcement.peers)
    by_model: dict[str, int] = {}
    estimated = 0
    for digest, numbers in said.items():
        kept = view.of(digest) if view is not None else None
        counted = max(len(numbers), kept.estimate if kept is not None else 0)
        of_large = [number for number in numbers if number]
        believed = min(statistics.median_low(of_large), BELIEVED_EACH * len(numbers)) if of_large else 0
        estimated += max(counted, believed)
        heard = view is not None and digest in view.joined
        by_model[digest] = counted if heard else max(counted, believed)
    known = sum(map(len, said.values()))
    partial = sum(number > 0 for numbers in said.values() for number in numbers)
    if view is not None:
        estimated = max(estimated, view.heard_in_all(now))
    sure = [digest for digest in by_model if view is None or view.counts(digest)]
    models = max(1, len(sure), math.ceil(len(by_model) * FEW_SHARE))
    overlapping = any(0 in said[digest] for digest in sure)
    return Census(SwarmCount(known, partial, estimated), by_model, overlapping, models)
