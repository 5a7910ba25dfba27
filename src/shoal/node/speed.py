"""How fast a span decodes, measured once it is loaded: what others place themselves by."""

from __future__ import annotations

import time

import torch

from shoal.executor.pages import PAGE, PagePool
from shoal.executor.runner import Rows, Runner

SESSIONS = 8
"""That decode together."""
LONGEST_S = 0.5
STEPS = 5


def measure_speed(runner: Runner, pool: PagePool) -> float:
    """Blocks in a second for sessions that decode together; 0 where the pool has no room for them.

    Called on the runner's thread, before any session is open.
    """
    sessions = min(SESSIONS, pool.tokens_free // PAGE)
    if not sessions:
        return 0.0
    pages = [pool.promise(PAGE) for _ in range(sessions)]
    states = [runner.open(runner.span, held) for held in pages]
    hidden = torch.full((1, runner.width), 0.1)
    took: list[float] = []
    try:
        for step in range(STEPS):
            began = time.perf_counter()
            runner.forward([Rows(state, step, hidden) for state in states])
            took.append(time.perf_counter() - began)
            if sum(took) > LONGEST_S:
                break
    finally:
        for held in pages:
            held.resize(0)
            pool.forget(held)
    return sessions * len(runner.span) / min(took)
