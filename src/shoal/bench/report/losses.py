"""The loss of a run of tuning against its steps, as a picture that stands by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

from shoal.bench.report.svg import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Drawing, Scale, colour

MOST_POINTS = 400
"""Of a line. Of a longer run each is the mean of several steps."""
LABEL = 110.0
"""Room beside the lines for their names."""
Curve = Sequence[tuple[int, float]]
"""Losses by step."""


def losses_plot(losses: Curve, held_back: Curve = ()) -> str | None:
    """An SVG file; ``None`` where no loss is finite.

    Args:
        losses: of each step, over what it has learnt from.
        held_back: over examples that nothing is learnt from.
    """
    named = {"loss": _fewer(losses), "held back": _fewer(held_back)}
    lines = {name: curve for name, curve in named.items() if curve}
    if not lines:
        return None
    found = [loss for curve in lines.values() for _, loss in curve]
    last = max(step for curve in lines.values() for step, _ in curve)
    low, high = min(found) * 0.95, max(found) * 1.02
    x = Scale(0, max(last, 1), LEFT, WIDTH - RIGHT - LABEL)
    y = Scale(low, high if high > low else low + 1, HEIGHT - BOTTOM, TOP)
    drawing = Drawing("Loss against steps")
    drawing.axes(x, y, "steps", "loss, nats a token")
    label = 0.0
    for number, (name, curve) in sorted(enumerate(lines.items()), key=lambda one: -one[1][1][-1][1]):
        drawing.line([(x(step), y(loss)) for step, loss in curve], colour(number))
        step, loss = curve[-1]
        drawing.dot(x(step), y(loss), colour(number), f"{name} {loss:.4f} after {step:,} steps")
        label = max(label + 15, y(loss) + 4)
        drawing.text(x(last) + 10, label, f"{name} {loss:.3f}")
    return drawing.file()


def _fewer(curve: Curve) -> list[tuple[float, float]]:
    """The finite ones, as means of equal stretches where there are too many. The last stays as it is."""
    finite = [(step, loss) for step, loss in curve if math.isfinite(loss)]
    size = math.ceil(len(finite) / MOST_POINTS)
    if size <= 1:
        return [*finite]
    stretches = [finite[at : at + size] for at in range(0, len(finite) - 1, size)]
    means = [
        (sum(step for step, _ in some) / len(some), sum(loss for _, loss in some) / len(some))
        for some in stretches
    ]
    return [*means, finite[-1]]
