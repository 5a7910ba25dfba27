"""How long a node takes to start, and how much memory it has then.

A node process with all blocks of the model is started on this machine: first with nothing packed, as after an
install, then with packed weights from the start before. Beside it stands what every command takes to begin.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
import trio

from shoal.bench.models import described_model, held_formats, measured_model
from shoal.bench.results import BenchReport, Contender, compared, describe_machine, in_turns
from shoal.config import Settings
from shoal.errors import StepFailed
from shoal.local.processes import starting_swarm
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.types import Format

MB = 1e6
HELP_WITHIN_S = 60.0
HELP = (sys.executable, "-m", "shoal.cli", "--help")


class NodeStarts:
    """Starts a node with all blocks of a model in one format, again and again; it ends each time.

    Args:
        cache: a folder for packed weights, which is kept between the starts.
    """

    def __init__(self, settings: Settings, model: LocalModel, cache: Path) -> None:
        self._settings = settings
        self._blocks = model.shape.n_blocks
        self._cache = cache
        self._memory = float("nan")

    async def first(self) -> float:
        """Seconds until a node serves that has nothing packed."""
        return await self._start(None)

    async def again(self) -> float:
        """Seconds until a node serves that finds packed weights; the very first call makes them."""
        return await self._start(self._cache)

    async def memory(self) -> float:
        """Megabytes that the last node had when it served, its mapped weights included."""
        return self._memory

    async def _start(self, cache: Path | None) -> float:
        began = time.perf_counter()
        async with starting_swarm(self._settings, self._blocks, 1, cache=cache) as starting:
            served = await starting.serving()
            took = time.perf_counter() - began
            self._memory = psutil.Process(served.nodes[0]["pid"]).memory_info().rss / MB
        return took


async def measure_start(
    settings: Settings, formats: Sequence[Format], rounds: int, progress: Progress
) -> BenchReport:
    """Measure the start of a node in each of ``formats``, in turns.

    Raises:
        ShoalError: the model cannot be had, or a node did not come up; the error is that node's own.
    """
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    with TemporaryDirectory(prefix="shoal-start-") as folder:
        contenders = [Contender("start/help", "s", _help)]
        pairs: dict[str, dict[str, str]] = {}
        for format in held_formats(model, formats):
            starts = NodeStarts(replace(settings, format=format), model, Path(folder, format))
            first, again = f"start/{format}/first", f"start/{format}/again"
            contenders += [
                Contender(first, "s", starts.first),
                Contender(again, "s", starts.again),
                Contender(f"start/{format}/memory", "MB", starts.memory),
            ]
            pairs[again] = {"first": first}
        results = await in_turns(contenders, rounds, progress)
    notes = (
        "first: with nothing packed, again: with weights packed before; until a node with all blocks serves",
        "memory is that of the node's process once it serves, with the pages of files that it has mapped",
    )
    return BenchReport(
        f"The start of a node with {model.name}",
        describe_machine(settings.threads),
        tuple(compared(results, pairs)),
        notes=notes,
        model=described_model(model),
    )


async def _help() -> float:
    """Seconds that the shortest command takes."""
    began = time.perf_counter()
    with trio.fail_after(HELP_WITHIN_S):
        ended = await trio.run_process(
            HELP, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
        )
    if ended.returncode:
        raise StepFailed("shoal --help failed", check="run it by hand")
    return time.perf_counter() - began
