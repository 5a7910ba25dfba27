"""How long it takes to find a model that one has never asked for: Kademlia, as the library walks it.

https://github.com/libp2p/specs/blob/master/kad-dht/README.md. A machine knows up to ``BUCKET`` others of each
distance; those that died since it met them are still in its table. Rounds of ``ALPHA`` questions go to the
nearest that are known; one that is silent holds its round up until it is given up. Then the ``BUCKET``
nearest are asked who provides the model, and those are asked what they know.
"""

from __future__ import annotations

import bisect
import hashlib
from random import Random

from shoal.net.libp2p.providers import ASKED_AT_ONCE
from shoal.swarm.views.look_up import DIAL_WITHIN_S
from shoal.testing.sim.scale.population import LEAVES, VANISHES, Machines

BUCKET, ALPHA, ROUNDS = 20, 10, 20
SILENT_S = 10.0
"""Until a question to a machine that is gone is given up."""
BITS = 64
"""Of a distance: enough to tell machines apart."""
TRIPS = 3
"""Round trips of a question to a stranger: TCP, Noise, and the question."""


class Kademlia:
    """The tables of all machines, made when they are looked into.

    Args:
        met: the machines that have been there lately, living or not.
        living: of those, the ones that are.
    """

    def __init__(self, population: Machines, met: list[int], living: set[int], chance: Random) -> None:
        self._population = population
        self._living = living
        self._chance = chance
        self._sorted = sorted((_key(f"peer {machine}"), machine) for machine in met)
        self._keys = [key for key, _ in self._sorted]

    def find_s(self, machine: int, model: int, providers: list[int]) -> float:
        """Seconds until one machine has heard from somebody who serves the model; infinite where it does not.

        Args:
            providers: living machines that serve it.
        """
        wanted = _key(f"model {model}")
        known = self._nearest_in_table(machine, wanted)
        asked: set[int] = set()
        took_s = 0.0
        for _ in range(ROUNDS):
            batch = [other for other in known if other not in asked and other != machine][:ALPHA]
            if not batch:
                break
            asked.update(batch)
            took_s += max(self._asked_s(machine, other) for other in batch)
            named = {
                one
                for other in batch
                if other in self._living
                for one in self._nearest_in_table(other, wanted)
            }
            nearest = sorted({*known, *named}, key=lambda one: self._distance(one, wanted))[:BUCKET]
            if nearest == known:
                break
            known = nearest
        # Of those nearest to the key so many are asked at a time; a silent one holds only its own place up.
        free = [took_s] * ASKED_AT_ONCE
        told: list[float] = []
        for other in known:
            place = free.index(min(free))
            free[place] += self._asked_s(machine, other)
            if other in self._living:
                told.append(free[place])
        # The library's look-up and these questions have one deadline; with what has come then it goes on.
        if not told or took_s > DIAL_WITHIN_S or not providers:
            return float("inf")
        heard_s = min(DIAL_WITHIN_S, max(free))
        picked = self._chance.sample(providers, min(len(providers), 16))
        return heard_s + min(self._asked_s(machine, other) for other in picked)

    def _asked_s(self, machine: int, other: int) -> float:
        if other in self._living:
            return asked_s(self._population, machine, other)
        rtt_s = 2 * float(self._population.way_s(machine, other))
        return SILENT_S if self._population.end[other] == VANISHES else rtt_s

    def _distance(self, machine: int, wanted: int) -> int:
        return _key(f"peer {machine}") ^ wanted

    def _nearest_in_table(self, machine: int, wanted: int) -> list[int]:
        """Of whom a machine knows, the nearest to a key."""
        own = _key(f"peer {machine}")
        shared = BITS - (own ^ wanted).bit_length()
        found: list[int] = []
        # The bucket that the key falls into, then those of what is nearer to the machine itself.
        for depth in range(shared, BITS):
            found += self._bucket(own, depth)
            if len(found) >= BUCKET:
                break
        for depth in range(shared - 1, -1, -1):
            if len(found) >= BUCKET:
                break
            found += self._bucket(own, depth)
        return sorted(set(found), key=lambda one: self._distance(one, wanted))[:BUCKET]

    def _bucket(self, own: int, depth: int) -> list[int]:
        """Some of those who share ``depth`` bits with a key, and not the next."""
        low = (own >> (BITS - depth - 1) ^ 1) << (BITS - depth - 1)
        begin = bisect.bisect_left(self._keys, low)
        end = bisect.bisect_left(self._keys, low + (1 << (BITS - depth - 1)))
        chance = Random(own ^ depth)  # a table is the same each time that it is looked into
        machines = range(begin, end)
        drawn = machines if len(machines) <= BUCKET else chance.sample(machines, BUCKET)
        return [self._sorted[place][1] for place in drawn]


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[: BITS // 8])


def asked_s(population: Machines, machine: int, other: int) -> float:
    """Seconds until a living stranger has answered."""
    return TRIPS * 2 * float(population.way_s(machine, other))


def left_tables(population: Machines, machine: int) -> bool:
    """Whether a machine that is gone said so, and is in no table any more."""
    return bool(population.end[machine] == LEAVES)
