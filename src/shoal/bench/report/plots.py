"""The three plots of a report: roofline, tokens against sessions, where a step's time goes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shoal.bench.report.svg import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Drawing,
    Scale,
    above,
    colour,
    short,
)
from shoal.bench.results import PARTS, Measurement, StepSplit

DECODE = re.compile(r"^(?P<series>.+)/decode/b(?P<sessions>\d+)$")
"""Names of decoding speeds, and the sessions that decode at once."""
ROW, BAR = 26.0, 16.0
"""Heights of a hop's row and of the bar in it."""


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement on the roofline plot."""

    series: str
    label: str
    intensity: float
    """Operations for each byte read."""
    ops: float
    """Operations in a second."""


def points_of(results: Iterable[Measurement]) -> list[Point]:
    """Where each result stands for which the roofline says something."""
    found: list[Point] = []
    for result in results:
        if result.expected is not None:
            series, kind, size = result.name.rsplit("/", 2)
            estimate = result.expected.estimate
            label = size if kind == "decode" else kind
            ops = estimate.ops * result.value / result.expected.tokens
            found.append(Point(series, label, estimate.intensity, ops))
    return found


def roofline(bandwidth: float, ceilings: Mapping[str, float], points: Sequence[Point]) -> Drawing:
    """Each measurement under the roof of this machine (Williams, Waterman and Patterson, 2009).

    Args:
        bandwidth: of memory, in bytes a second.
        ceilings: operations a second at large batch, by format.
    """
    intensities = [point.intensity for point in points]
    top = max(ceilings.values())
    low, high = min([*intensities, 0.5]) / 2, max([*intensities, 2 * top / bandwidth]) * 2
    least = min([point.ops for point in points] + [low * bandwidth]) / 2
    x = Scale(low, high, LEFT, WIDTH - RIGHT - 90, log=True)
    y = Scale(least, top * 2, HEIGHT - BOTTOM, TOP, log=True)
    drawing = Drawing("Roofline: operations a second against operations for each byte read")
    drawing.axes(x, y, "operations for each byte read", "operations a second")
    drawing.line([(x(low), y(low * bandwidth)), (x(top / bandwidth), y(top))], "var(--ink)", 2.5)
    label = 0.0
    for format, ops in sorted(ceilings.items(), key=lambda item: -item[1]):
        dash = "" if ops == top else "5 4"
        drawing.line([(x(ops / bandwidth), y(ops)), (x(high), y(ops))], "var(--ink)", 2, dash)
        label = max(y(ops) + 4, label + 13)
        drawing.text(x(high) + 6, label, f"{format} {short(ops)} op/s", kind="note")
    middle = low * (top / bandwidth / low) ** 0.75
    drawing.text(x(middle) - 10, y(middle * bandwidth) - 4, f"memory {short(bandwidth)}B/s", "end", "note")
    series = roofline_series(points)
    for point in points:
        place = x(point.intensity), y(point.ops)
        about = f"{point.series} {point.label}: {short(point.ops)} op/s at {point.intensity:.3g} op/B"
        drawing.dot(*place, colour(series.index(point.series)), about)
        drawing.text(place[0] + 8, place[1] + 4, point.label, kind="note")
    return drawing


def roofline_series(points: Iterable[Point]) -> list[str]:
    """The names for that plot's legend, in the order of its colours."""
    return list(dict.fromkeys(point.series for point in points))


def curves(results: Iterable[Measurement]) -> dict[str, list[tuple[int, Measurement]]]:
    """Decoding speeds by series, each with the number of sessions, fewest first."""
    found: dict[str, list[tuple[int, Measurement]]] = {}
    for result in results:
        if match := DECODE.match(result.name):
            found.setdefault(match["series"], []).append((int(match["sessions"]), result))
    return {series: sorted(points, key=lambda point: point[0]) for series, points in found.items()}


def against_sessions(results: Iterable[Measurement]) -> Drawing:
    """Tokens a second over all sessions against how many there are, with the spread of the rounds."""
    series = curves(results)
    counts = sorted({count for points in series.values() for count, _ in points})
    fastest = max(result.max for points in series.values() for _, result in points)
    x = Scale(counts[0], max(counts[-1], 2 * counts[0]), LEFT, WIDTH - RIGHT - 10, log=True)
    y = Scale(0, above(fastest), HEIGHT - BOTTOM, TOP)
    drawing = Drawing("Tokens a second against sessions")
    drawing.axes(x, y, "sessions at once", "tokens a second", counts)
    for number, points in enumerate(series.values()):
        upper = [(x(count), y(result.max)) for count, result in points]
        lower = [(x(count), y(result.min)) for count, result in reversed(points)]
        drawing.area([*upper, *lower], colour(number))
        drawing.line([(x(count), y(result.value)) for count, result in points], colour(number))
    for number, (name, points) in enumerate(series.items()):
        for count, result in points:
            about = (
                f"{name}, {count} sessions: {result.value:.4g} tok/s ({result.min:.4g} to {result.max:.4g})"
            )
            drawing.dot(x(count), y(result.value), colour(number), about)
    return drawing


def step_split(steps: Sequence[StepSplit]) -> Drawing:
    """The time of a step, a bar for each hop, with so many sessions at once."""
    longest = max(sum(hop.parts().values()) for split in steps for hop in split.hops)
    rows = sum(len(split.hops) + 1 for split in steps)
    height = TOP + rows * ROW + BOTTOM
    x = Scale(0, above(longest), LEFT + 40, WIDTH - RIGHT)
    y = Scale(0, 1, height - BOTTOM, height - BOTTOM)
    drawing = Drawing("Where the time of a step goes, by hop", height=height)
    for value in x.ticks():
        drawing.line([(x(value), TOP), (x(value), y.start)], "var(--grid)", 1)
        drawing.text(x(value), y.start + 18, short(value), "middle", "tick")
    drawing.text((x.start + x.end) / 2, y.start + 38, "milliseconds of a decode step", "middle", "axis")
    top = TOP
    for split in steps:
        title = "1 session" if split.sessions == 1 else f"{split.sessions} sessions"
        drawing.text(12, top + BAR, title, kind="axis")
        top += ROW
        for hop in split.hops:
            drawing.text(x.start - 8, top + BAR - 4, hop.hop, "end", "tick")
            at = 0.0
            for number, part in enumerate(PARTS):
                took = hop.parts()[part]
                about = f"{title}, hop {hop.hop}: {took:.3g} ms {part}"
                drawing.bar(x(at), top, x(at + took) - x(at), BAR, colour(number), about)
                at += took
            top += ROW
    return drawing
