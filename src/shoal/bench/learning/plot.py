"""The loss of each way against the steps, as a picture that stands by itself."""

from __future__ import annotations

from typing import Any, cast

from shoal.bench.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing, Scale, colour


def learning_plot(found: dict[str, Any]) -> str:
    """An SVG file of what :func:`~shoal.bench.learning.measure.measure_learning` has found."""
    ways = cast("list[dict[str, Any]]", found["ways"])
    losses = [loss for way in ways for _, loss in way["curve"]]
    x = Scale(0, found["steps"], LEFT, WIDTH - RIGHT - 150)
    y = Scale(min(losses) * 0.95, max(losses) * 1.02, HEIGHT - BOTTOM, TOP)
    drawing = Drawing("Loss over text that nothing was learnt from, against steps")
    drawing.axes(x, y, "steps of each member", "loss, nats a byte")
    label = 0.0
    for number, way in sorted(enumerate(ways), key=lambda pair: -pair[1]["held_back"]):
        drawing.line([(x(step), y(loss)) for step, loss in way["curve"]], colour(number))
        label = max(label + 15, y(way["held_back"]) + 4)
        drawing.text(
            x(found["steps"]) + 8, label, f"{way['way']}, {way['bytes_per_step'] / 1000:,.0f} kB a step"
        )
        drawing.bar(x(found["steps"]) + 1, label - 5, 5, 5, colour(number), way["way"])
    return drawing.file()
