"""How fast a span decodes, measured once it is loaded: what others place themselves by."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shoal.executor.pages import PAGE, PagePool
from shoal.executor.runner import Runner, SessionRows
from shoal.types import Span

SESSIONS = 8
"""That decode together."""
LONGEST_S = 0.25
"""For each number of sessions."""
STEPS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """What a span can do while nobody else asks for it."""

    step_s: float
    """Time of a decode step through the span for one session alone."""
    blocks_s: float
    """Blocks in a second, for sessions that decode together."""


Measure = Callable[[Runner, PagePool], Speed]
"""What finds the speed of a span that has just been loaded, as :func:`measure_speed` does."""


def measure_speed(runner: Runner, pool: PagePool) -> Speed:
    """Run a few decode steps. Called on the runner's thread, before any session is open."""
    sessions = min(SESSIONS, pool.tokens_free // PAGE)
    sides = _sides(runner)
    step_s = sum(_step_s(runner, pool, 1, side) for side in sides)
    together_s = sum(_step_s(runner, pool, sessions, side) for side in sides)
    return Speed(step_s, sessions * len(runner.span) / together_s)


def _sides(runner: Runner) -> list[Span]:
    """The parts of a span over which sessions go: its blocks of an encoder, and all others."""
    span, boundary = runner.span, runner.capabilities.boundary
    if not span.start < boundary < span.end:
        return [span]
    return [Span(span.start, boundary), Span(boundary, span.end)]


def _step_s(runner: Runner, pool: PagePool, sessions: int, span: Span) -> float:
    """The shortest of some decode steps of so many sessions."""
    pages = [pool.promise(PAGE) for _ in range(sessions)]
    states = [runner.open(span, held) for held in pages]
    boundary = runner.capabilities.boundary
    stateless = runner.capabilities.stateless or span.end <= boundary
    # What an encoder gave comes first, and takes no time.
    given = int(boundary > 0 and not stateless)
    hidden = np.full((1, runner.width), 0.1, np.float32)
    took: list[float] = []
    try:
        for step in range(STEPS + given):
            began = time.perf_counter()
            position = 0 if stateless else step
            runner.forward([SessionRows(state, position, hidden) for state in states])
            if step >= given:
                took.append(time.perf_counter() - began)
            if sum(took) > LONGEST_S:
                break
    finally:
        for held in pages:
            held.resize(0)
            pool.forget(held)
    # The shortest is the span's own: whatever else the machine does only adds to it.
    return min(took)
