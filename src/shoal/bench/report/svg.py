"""Small SVG drawings: axes, lines, bars, labels. Colours are CSS variables, so that both themes fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

COLOURS = ("--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8")
"""Of series, in order."""
STYLE = (
    "<style>svg { background:#fff; --ink:#16242c; --grid:#e3e9ec; --card:#fff; "
    "--c1:#0b7285; --c2:#e8590c; --c3:#7048e8; --c4:#2b8a3e;"
    " font:12px system-ui, sans-serif } text { fill:#16242c } .tick, .note { fill:#5b6b75 } "
    ".axis { font-weight:600 }</style>"
)
"""Of a drawing that stands on no page."""
WIDTH, HEIGHT = 760.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 20.0, 18.0, 48.0


def colour(number: int) -> str:
    """The colour of the series of that number."""
    return f"var({COLOURS[number % len(COLOURS)]})"


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to places along an axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        turn: Callable[[float], float] = math.log10 if self.log else float
        low, high = turn(self.low), turn(self.high)
        bounded = min(max(value, self.low), self.high)
        return self.start + (self.end - self.start) * (turn(bounded) - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values along the scale: powers of ten on a logarithmic one."""
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [10.0**power for power in range(first, last + 1)]
        step = nice_step((self.high - self.low) / 5)
        count = int((self.high - self.low) / step + 1e-9)
        return [self.low + step * number for number in range(count + 1)]


def nice_step(least: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that is not below ``least``."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least * (1 - 1e-9))


def above(value: float) -> float:
    """A round number above ``value``, for the end of an axis."""
    step = nice_step(value / 5) if value > 0 else 1.0
    return step * math.ceil(value / step * (1 - 1e-12) + 1e-9)


def short(value: float) -> str:
    """``value`` in few characters: ``1.2k``, ``30G``."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


@dataclass(slots=True)
class Drawing:
    """Elements in the order in which they are painted."""

    title: str
    """What a reader who sees no pictures is told."""
    width: float = WIDTH
    height: float = HEIGHT
    _parts: list[str] = field(default_factory=list[str])

    def line(
        self, points: Sequence[tuple[float, float]], stroke: str, width: float = 2, dash: str = ""
    ) -> None:
        """A line through ``points``."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{stroke}" stroke-width="{width}"'
            f' stroke-linejoin="round"{dashed}/>'
        )

    def area(self, points: Sequence[tuple[float, float]], fill: str) -> None:
        """A faint surface, such as the spread around a line."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polygon points="{path}" fill="{fill}" opacity="0.14"/>')

    def dot(self, x: float, y: float, fill: str, about: str) -> None:
        """A point, with what it stands for."""
        self._parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{fill}" stroke="var(--card)" stroke-width="1.5">'
            f"<title>{escape(about)}</title></circle>"
        )

    def bar(self, x: float, y: float, width: float, height: float, fill: str, about: str) -> None:
        """A rectangle, with what it stands for."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.6):.1f}" height="{height:.1f}" rx="2"'
            f' fill="{fill}"><title>{escape(about)}</title></rect>'
        )

    def text(self, x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> None:
        """Words; ``kind`` is their CSS class."""
        named = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{named}>{escape(words)}</text>'
        )

    def axes(self, x: Scale, y: Scale, x_name: str, y_name: str, x_ticks: Sequence[float] = ()) -> None:
        """Grid lines, their values, and what the axes mean."""
        for value in x_ticks or x.ticks():
            self.line([(x(value), y.start), (x(value), y.end)], "var(--grid)", 1)
            self.text(x(value), y.start + 18, short(value), "middle", "tick")
        for value in y.ticks():
            self.line([(x.start, y(value)), (x.end, y(value))], "var(--grid)", 1)
            self.text(x.start - 8, y(value) + 4, short(value), "end", "tick")
        self.text((x.start + x.end) / 2, y.start + 38, x_name, "middle", "axis")
        middle = (y.start + y.end) / 2
        self._parts.append(
            f'<text x="16" y="{middle:.1f}" text-anchor="middle" class="axis"'
            f' transform="rotate(-90 16 {middle:.1f})">{escape(y_name)}</text>'
        )

    def svg(self) -> str:
        """The drawing as an element of a page."""
        return (
            f'<svg viewBox="0 0 {self.width:.0f} {self.height:.0f}" xmlns="http://www.w3.org/2000/svg"'
            f' role="img" aria-label="{escape(self.title)}">{"".join(self._parts)}</svg>'
        )

    def file(self) -> str:
        """The drawing as a file that stands by itself, with the first four colours."""
        svg = self.svg()
        end = svg.index(">") + 1
        return svg[:end] + STYLE + svg[end:] + "\n"
