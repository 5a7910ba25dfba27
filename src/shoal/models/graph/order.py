"""In which order a graph's nodes stand before it is cut: of some thirty, the one with thin places. Pure.

Whoever wrote the file has put the nodes into some order in which each comes after those that it needs. In
another such order less may be alive in the middle: a branch is computed to its end before the next is begun.
What a node computes is the same in all of them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from random import Random

from shoal.models.graph.cut import CutNode, crossing_bytes

ORDERS = 30
MOST_VISITS = 600_000
"""Nodes in all orders that are tried: of a graph of 60,000 nodes ten."""
PARTS = (2, 3, 5, 8)
"""Into how many an order is thought to be cut, when it is judged."""
NEAR = 0.25
"""Of an equal share of the cost: how far from its end a cut is looked for."""
BETTER = 0.98
"""What another order than the file's own has to carry at most, in shares of that."""


def choose_order(
    nodes: Sequence[CutNode], inputs: Sequence[str], outputs: Sequence[str], sizes: Mapping[str, int]
) -> list[int]:
    """The nodes by their places, in the order in which the graph is to be cut.

    Args:
        sizes: bytes of each value that can travel.
    """
    own = list(range(len(nodes)))
    best, least = own, _carried([nodes[i] for i in own], inputs, outputs, sizes)
    seen = {tuple(own)}
    for order in _orders(nodes, sizes):
        if (key := tuple(order)) not in seen:
            seen.add(key)
            carried = _carried([nodes[i] for i in order], inputs, outputs, sizes)
            if carried < BETTER * least:
                best, least = order, carried
    return best


def _carried(
    nodes: Sequence[CutNode], inputs: Sequence[str], outputs: Sequence[str], sizes: Mapping[str, int]
) -> float:
    """Bytes that cross at the thinnest places near the ends of equal shares, over some numbers of shares."""
    crossing = crossing_bytes(nodes, inputs, outputs, sizes)
    before = list(accumulate((node.cost for node in nodes), initial=0.0))
    most = float(sum(sizes.values())) + 1.0
    total = 0.0
    for parts in PARTS:
        share = before[-1] / parts
        thinnest = [most] * parts
        for position in range(1, len(nodes)):
            nearest = round(before[position] / share)
            weight = crossing[position]
            if weight is None or not 0 < nearest < parts:
                continue
            if abs(before[position] - nearest * share) <= NEAR * share:
                thinnest[nearest] = min(thinnest[nearest], weight)
        total += sum(thinnest[1:]) / (parts - 1)
    return total


def _orders(nodes: Sequence[CutNode], sizes: Mapping[str, int]) -> Iterator[list[int]]:
    """Depth first and breadth first; that with the least alive after each node; and some by chance, the same
    ones each time."""
    rng = Random(0)
    walk = _Walk(nodes, sizes)
    ranks: list[Callable[[int], float]] = [
        lambda _: -float(walk.step),  # what has just become possible
        lambda _: float(walk.step),
        walk.growth,
    ]

    def by_chance(index: int) -> float:
        return walk.growth(index) * rng.random()

    count = min(ORDERS, MOST_VISITS // max(1, len(nodes))) - 1
    for number in range(count):
        yield walk.through(ranks[number] if number < len(ranks) else by_chance)


class _Walk:
    """Ways through a graph from its inputs on, by which of the nodes that are possible comes next."""

    def __init__(self, nodes: Sequence[CutNode], sizes: Mapping[str, int]) -> None:
        self.step = 0
        self._nodes = nodes
        self._sizes = sizes
        maker = {value: index for index, node in enumerate(nodes) for value in node.makes}
        self._needs = [{maker[v] for v in node.takes if v in maker} for node in nodes]
        self._after: list[list[int]] = [[] for _ in nodes]
        for index, needs in enumerate(self._needs):
            for before in needs:
                self._after[before].append(index)
        self._users: dict[str, int] = {}
        for node in nodes:
            for value in node.takes:
                self._users[value] = self._users.get(value, 0) + 1
        self._left: dict[str, int] = {}

    def growth(self, index: int) -> float:
        """Bytes that are alive after a node and were not before, by who has used what until now."""
        node = self._nodes[index]
        made = sum(self._sizes.get(value, 0) for value in node.makes)
        freed = sum(self._sizes.get(value, 0) for value in node.takes if self._left[value] == 1)
        return float(made - freed)

    def through(self, rank: Callable[[int], float]) -> list[int]:
        """One order; of the nodes that are possible, that of the least rank comes next."""
        self.step, self._left = 0, dict(self._users)
        waiting = [len(needs) for needs in self._needs]
        ready = [(rank(index), index) for index, count in enumerate(waiting) if not count]
        heapq.heapify(ready)
        found: list[int] = []
        while ready:
            _, index = heapq.heappop(ready)
            found.append(index)
            self.step += 1
            for value in self._nodes[index].takes:
                self._left[value] -= 1
            for after in self._after[index]:
                waiting[after] -= 1
                if not waiting[after]:
                    heapq.heappush(ready, (rank(after), after))
        return found
