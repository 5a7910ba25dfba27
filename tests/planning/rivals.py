"""How others place nodes, written anew from their papers and documents, to be compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from shoal.planning.throughput import ServingPeer
from shoal.types import Span


@dataclass(frozen=True)
class Box:
    """A machine: how many blocks fit, and how many it computes in a second."""

    fits: int
    speed: float


def petals(boxes: Sequence[Box], n_blocks: int, rng: Random) -> list[ServingPeer]:
    """Borzunov et al. 2023: each joins where the weakest block is the weakest, speeds divided over the spans,
    and moves when all moves together would raise the weakest block's throughput by a third."""
    spans: dict[int, Span] = {}
    order = rng.sample(range(len(boxes)), len(boxes))
    for number in order:
        spans[number] = _weakest_window(boxes, spans, number, n_blocks)
    for _ in range(3):
        for number in order:
            before = min(_shares(boxes, spans, n_blocks))
            others = {i: span for i, span in spans.items() if i != number}
            if before > 0 and min(_shares(boxes, others, n_blocks)) <= 0:
                continue
            target = _weakest_window(boxes, others, number, n_blocks)
            settled = _all_moved(boxes, {**others, number: target}, n_blocks, rng)
            if before < 0.75 * min(_shares(boxes, settled, n_blocks)):
                spans[number] = target
    return [ServingPeer(span, boxes[number].speed) for number, span in spans.items()]


def _shares(boxes: Sequence[Box], spans: dict[int, Span], n_blocks: int) -> list[float]:
    shares = [0.0] * n_blocks
    for number, span in spans.items():
        for block in range(span.start, span.end):
            shares[block] += boxes[number].speed / len(span)
    return shares


def _weakest_window(boxes: Sequence[Box], spans: dict[int, Span], number: int, n_blocks: int) -> Span:
    length = min(boxes[number].fits, n_blocks)
    shares = _shares(boxes, spans, n_blocks)
    start = min(range(n_blocks - length + 1), key=lambda s: (sorted(shares[s : s + length]), s))
    return Span(start, start + length)


def _all_moved(boxes: Sequence[Box], spans: dict[int, Span], n_blocks: int, rng: Random) -> dict[int, Span]:
    for _ in range(5):
        before = dict(spans)
        for number in rng.sample(sorted(spans), len(spans)):
            others = {i: span for i, span in spans.items() if i != number}
            spans = {**others, number: _weakest_window(boxes, others, number, n_blocks)}
        if spans == before:
            break
    return spans


def parallax(boxes: Sequence[Box], n_blocks: int) -> list[ServingPeer]:
    """Parallax (Gradient, 2025): the k pipelines of least stages s(k) for which k²/s(k) is the most. In each,
    blocks in proportion to speed as far as they fit; and who is left over, where the fewest serve."""
    ordered = sorted((Box(min(b.fits, n_blocks), b.speed) for b in boxes), key=lambda b: -b.fits)
    best, score = [], 0.0
    for count in range(1, sum(b.fits for b in ordered) // n_blocks + 1):
        pipelines = _pipelines(tuple(b.fits for b in ordered), n_blocks, count)
        if pipelines is not None and count**2 / sum(map(len, pipelines)) > score:
            best, score = pipelines, count**2 / sum(map(len, pipelines))
    placed = [p for pipeline in best for p in _water_filled([ordered[i] for i in pipeline], n_blocks)]
    used = {i for pipeline in best for i in pipeline}
    for number, box in enumerate(ordered):
        if number not in used:
            serving = [sum(block in p.span for p in placed) for block in range(n_blocks)]
            start = serving.index(min(serving))
            placed.append(ServingPeer(Span(start, min(start + box.fits, n_blocks)), box.speed))
    return placed


def _pipelines(fits: tuple[int, ...], n_blocks: int, count: int) -> list[list[int]] | None:
    """The members of ``count`` pipelines of least stages together; ``None`` when there are none."""

    @cache
    def least(i: int, open_: tuple[int, ...], begun: int) -> tuple[float, int | None]:
        """Stages still needed, and the pipeline that ``i`` joins, by what it lacks; -1 a new, -2 none."""
        if begun == count and not open_:
            return 0, None
        if sum(fits[i:]) < sum(open_) + (count - begun) * n_blocks:
            return math.inf, None
        found = [(least(i + 1, open_, begun)[0], -2)]
        found += [(1 + least(i + 1, _filled(open_, lacks, fits[i]), begun)[0], lacks) for lacks in set(open_)]
        if begun < count:
            found.append((1 + least(i + 1, _filled((*open_, n_blocks), n_blocks, fits[i]), begun + 1)[0], -1))
        return min(found)

    if least(0, (), 0)[0] == math.inf:
        return None
    members: list[list[int]] = []
    lacking: list[int] = []
    open_, begun = (), 0
    for i, blocks in enumerate(fits):
        act = least(i, open_, begun)[1]
        if act is None:
            break
        if act == -2:
            continue
        if act == -1:
            members.append([])
            lacking.append(n_blocks)
            begun += 1
        which = lacking.index(n_blocks if act == -1 else act)
        members[which].append(i)
        lacking[which] = max(0, lacking[which] - blocks)
        open_ = tuple(sorted(lacks for lacks in lacking if lacks))
    return members


def _filled(open_: tuple[int, ...], lacks: int, blocks: int) -> tuple[int, ...]:
    rest = list(open_)
    rest.remove(lacks)
    return tuple(sorted([*rest, lacks - blocks] if lacks > blocks else rest))


def _water_filled(members: Sequence[Box], n_blocks: int) -> list[ServingPeer]:
    low, high = 0.0, max(b.fits / b.speed for b in members)
    for _ in range(40):
        level = (low + high) / 2
        if sum(min(b.fits, level * b.speed) for b in members) >= n_blocks:
            high = level
        else:
            low = level
    target = [min(b.fits, high * b.speed) for b in members]
    counts = [int(t) for t in target]
    for i in sorted(range(len(members)), key=lambda i: counts[i] - target[i]):
        if sum(counts) < n_blocks and counts[i] < members[i].fits:
            counts[i] += 1
    placed, start = [], 0
    for box, blocks in zip(members, counts, strict=True):
        if blocks:
            placed.append(ServingPeer(Span(start, start + blocks), box.speed))
            start += blocks
    return placed
