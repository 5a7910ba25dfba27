"""A swarm on this machine against one process: what the ring, the batcher and the network cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import trio

from shoal.bench.executor import torch_thread
from shoal.bench.models import described_model, measured_model
from shoal.bench.one import DEPTH, STEPS, load_one
from shoal.bench.results import (
    BenchReport,
    Contender,
    Measurement,
    StepSplit,
    compared,
    in_turns,
)
from shoal.bench.roof import Roof, find_roof
from shoal.bench.through import through
from shoal.config import Settings
from shoal.executor.pages import PAGE
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.types import Format

SPLIT = (1, 8)
"""Numbers of sessions for which a report shows where a step's time goes."""


@dataclass(frozen=True, slots=True)
class SwarmBench:
    """What is measured."""

    formats: Sequence[Format]
    nodes: int
    sessions: int
    """The most at once; measured are 1, 2, 4 … up to it."""
    rounds: int


def session_counts(most: int) -> list[int]:
    """Powers of two below ``most``, and ``most``."""
    counts = [1]
    while counts[-1] * 2 < most:
        counts.append(counts[-1] * 2)
    return counts if most == 1 else [*counts, most]


async def measure_swarm(settings: Settings, asked: SwarmBench, progress: Progress) -> BenchReport:
    """Measure each format through node processes and in one process, in turns.

    Raises:
        ShoalError: the model cannot be had, or a node did not come up.
    """
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    results: list[Measurement] = []
    steps: tuple[StepSplit, ...] = ()
    with torch_thread() as thread:
        roof = await find_roof(thread, settings, model, asked.formats, progress)
    for format in asked.formats:
        found, steps = await _one_format(settings, model, format, asked, roof, progress)
        results += found
    title = f"{model.name} through {asked.nodes} node processes"
    note = f"The time of a step is that of {asked.formats[-1]}"
    return BenchReport(
        title, roof.described(), tuple(results), steps, notes=(note,), model=described_model(model)
    )


async def _one_format(
    settings: Settings, model: LocalModel, format: Format, asked: SwarmBench, roof: Roof, progress: Progress
) -> tuple[list[Measurement], tuple[StepSplit, ...]]:
    counts = session_counts(asked.sessions)
    room = counts[-1] * (DEPTH + STEPS + PAGE)
    with torch_thread() as thread:
        progress(f"loading {model.name} in {format}", 0, 0)
        one = await load_one(thread, model, settings, format, kv=settings.kv, tokens=room)
        async with through(settings, model, format, asked.nodes, progress) as ring:
            contenders: list[Contender] = []
            for count in counts:
                alone = partial(thread.run, partial(one.decode, count))
                contenders.append(Contender(_name("one", format, count), "tok/s", alone))
                contenders.append(
                    Contender(_name("swarm", format, count), "tok/s", partial(ring.decode, count))
                )
            results = await in_turns(contenders, asked.rounds, progress)
            steps = [
                ring.split(count, await thread.run(partial(one.ends_seconds, count)))
                for count in counts
                if count in SPLIT
            ]
    pairs = {_name("swarm", format, count): {"one process": _name("one", format, count)} for count in counts}
    return compared(results, pairs), tuple(steps)


def _name(where: str, format: Format, sessions: int) -> str:
    return f"{where}/{format}/decode/b{sessions}"
