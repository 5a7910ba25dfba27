"""Gossip of one topic over a mesh of limited degree: when a message is with whom, all of them at once.

What a message would do one hop after the other is found by relaxing all links together, until nobody hears of
it earlier: the same times, and no event for each of the copies that come second. Degrees are gossipsub's, as
:mod:`shoal.testing.sim.mesh` has them; bytes as :mod:`shoal.testing.sim.internet` counts them.
"""

from __future__ import annotations

from random import Random

import numpy as np

from shoal.routing.shortest_path import FloatArray, IndexArray
from shoal.testing.sim.internet import ENVELOPE, MENTION_BYTES
from shoal.testing.sim.mesh import DEGREE, HIGH, LAZY, LOW
from shoal.testing.sim.scale.population import (
    Flags,
    Machines,
)

LOSS = 0.01
"""The share of messages that gets lost on each link."""
WORD_BYTES = 700
"""Of a usual message, for how long it keeps a line busy."""


class TopicMesh:
    """The members of a topic, by their place in it, and who passes messages on to whom.

    Args:
        capacity: members that there will ever be.
    """

    def __init__(self, population: Machines, capacity: int, chance: Random, noise: np.random.Generator):
        self._population = population
        self._chance = chance
        self._noise = noise
        self._none = capacity
        self.machines: IndexArray = np.full(capacity + 1, -1, np.intp)
        self.count = 0
        """Places taken so far; those of the dead are not taken again."""
        self.sent: FloatArray = np.zeros(capacity + 1)
        """Bytes, by place."""
        self._alive: Flags = np.zeros(capacity + 1, np.bool_)
        self._linked: IndexArray = np.full((capacity + 1, HIGH), capacity, np.intp)
        self._way_s: FloatArray = np.full((capacity + 1, HIGH), np.inf)
        self._degree: IndexArray = np.zeros(capacity + 1, np.intp)
        self._living: list[int] = []
        self._place_in_living: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._living)

    def join(self, machine: int) -> int:
        """One more member; its place."""
        place = self.count
        self.count += 1
        self.machines[place] = machine
        self._alive[place] = True
        self._place_in_living[place] = len(self._living)
        self._living.append(place)
        self._grow(place, LOW)
        return place

    def stop(self, place: int) -> None:
        """A member passes nothing on any more, and nobody has noticed it yet."""
        self._alive[place] = False
        at = self._place_in_living.pop(place)
        last = self._living.pop()
        if last != place:
            self._living[at] = last
            self._place_in_living[last] = at

    def forget(self, place: int) -> None:
        """Its neighbours have noticed that a member is gone; who has too few takes others."""
        for other in self.neighbours(place):
            self._unlink(other, place)
            if self._alive[other] and self._degree[other] < LOW:
                self._grow(other, DEGREE)
        self._degree[place] = 0

    def neighbours(self, place: int) -> list[int]:
        """Who has links with ``place``."""
        return self._linked[place, : self._degree[place]].tolist()

    def some(self, count: int) -> list[int]:
        """Some living members, by chance."""
        return self._chance.sample(self._living, min(count, len(self._living)))

    def flood(self, place: int, size: int) -> FloatArray:
        """Seconds until a message of ``size`` bytes is with each place; infinite where it does not come."""
        n = self.count
        linked, way_s = self._linked[:n], self._way_s[:n]
        way_s = np.where(self._noise.random(way_s.shape) < LOSS, np.inf, way_s)
        dead = ~self._alive[:n]
        arrives = np.full(self._none + 1, np.inf)
        arrives[place] = 0.0
        while True:
            heard = (arrives[linked] + way_s).min(axis=1)
            heard[dead] = np.inf
            heard[place] = 0.0
            if not (heard < arrives[:n] - 1e-9).any():
                break
            arrives[:n] = np.minimum(arrives[:n], heard)
        told = np.isfinite(arrives[:n])
        copies = np.maximum(self._degree[:n] - 1, 0)
        copies[place] += 1
        # Each heartbeat mentions what is new to some others who are not in the mesh.
        mentions = MENTION_BYTES * min(LAZY, max(0, len(self) - 1 - DEGREE))
        self.sent[:n] += np.where(told, copies * (size + ENVELOPE) + mentions, 0.0)
        return arrives[:n]

    def _grow(self, place: int, degree: int) -> None:
        wanted = degree - int(self._degree[place])
        mine = set(self.neighbours(place)) | {place}
        for other in self.some(wanted * 3 + len(mine)):
            if wanted <= 0:
                return
            if other not in mine and self._degree[other] < HIGH:
                self._link(place, other)
                mine.add(other)
                wanted -= 1

    def _link(self, a: int, b: int) -> None:
        machines, population = self.machines, self._population
        way_s = float(population.way_s(machines[a], machines[b]))
        for mine, other in ((a, b), (b, a)):
            # A line sends copies one after the other: on average half of them go before.
            line_s = WORD_BYTES / float(population.up_bytes_s[machines[other]]) * DEGREE / 2
            at = self._degree[mine]
            self._linked[mine, at] = other
            self._way_s[mine, at] = way_s + line_s
            self._degree[mine] = at + 1

    def _unlink(self, place: int, other: int) -> None:
        found = np.flatnonzero(self._linked[place, : self._degree[place]] == other)
        if not len(found):
            return
        last = self._degree[place] - 1
        for table, none in ((self._linked, self._none), (self._way_s, np.inf)):
            table[place, found[0]] = table[place, last]
            table[place, last] = none
        self._degree[place] = last
