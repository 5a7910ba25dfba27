"""What the roofline of this machine allows, beside what is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from shoal.bench.one import DEPTH, STEPS
from shoal.bench.results import BenchReport, Expected, Measurement, describe_machine, of_rounds
from shoal.config import Settings
from shoal.executor.device.find import find_device
from shoal.executor.thread import ComputeThread
from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.sizes import weight_bytes
from shoal.models.store.local_model import LocalModel
from shoal.planning.costs import model_cost
from shoal.planning.measure import measure_accelerator, measure_machine
from shoal.planning.roofline import Machine, SpanCost, prefill_time, step_time
from shoal.progress import Progress
from shoal.types import Format


@dataclass(frozen=True, slots=True)
class Roof:
    """A machine, and what a model costs on it in each format."""

    machine: Machine
    costs: Mapping[Format, SpanCost]

    def decode(self, format: Format, sessions: int, context: int = DEPTH + STEPS // 2) -> Expected:
        """A step of so many sessions, by default as far on as they are while they are measured."""
        return Expected(step_time(self.machine, self.costs[format], sessions, context), sessions)

    def prefill(self, format: Format, tokens: int) -> Expected:
        """A prompt."""
        return Expected(prefill_time(self.machine, self.costs[format], tokens), tokens)

    def described(self, threads: int) -> dict[str, Any]:
        """The machine, as a report shows it."""
        return {**describe_machine(threads), **_lines(self.machine)}


def _lines(machine: Machine) -> dict[str, Any]:
    return {
        "bandwidth_bytes_s": round(machine.bandwidth),
        "ops_per_s": {f: round(o) for f, o in machine.ops.items()},
    }


def _results(name: str, found: Sequence[Machine]) -> list[Measurement]:
    """A machine measured several times; nothing where there is none."""
    if not found:
        return []
    ceilings = {format: [machine.ops[format] / 1e9 for machine in found] for format in found[0].ops}
    return [
        of_rounds(f"{name}/read", "GB/s", [machine.bandwidth / 1e9 for machine in found]),
        *(of_rounds(f"{name}/gemm/{format}", "Gop/s", values) for format, values in ceilings.items()),
    ]


async def find_roof(
    thread: ComputeThread,
    settings: Settings,
    model: LocalModel,
    formats: Sequence[Format],
    progress: Progress,
) -> Roof:
    """Measure this machine on ``thread``, and cost a model in each format.

    Raises:
        ShoalError: too little memory is free, or the model cannot be served in spans.
    """
    progress("measuring this machine", 0, 0)

    def find() -> Roof:
        machine = measure_machine(settings.threads)
        config = read_model_config(open_checkpoint(model.path))
        costs: dict[Format, SpanCost] = {
            f: model_cost(config, f, settings.kv, weight_bytes(model, f)) for f in formats
        }
        return Roof(machine, costs)

    return await thread.run(find)


async def measure_device(
    thread: ComputeThread, settings: Settings, rounds: int, progress: Progress
) -> BenchReport:
    """Memory bandwidth, and the ceiling of a large matrix product in each format.

    Raises:
        OutOfResources: too little memory is free.
    """
    found: list[Machine] = []
    gpus: list[Machine] = []
    device = (await thread.run(partial(find_device, settings.device))).device
    for turn in range(rounds):
        progress("measuring this machine", turn, rounds)
        found.append(await thread.run(partial(measure_machine, settings.threads)))
        if not device.is_cpu:
            gpus.append(await thread.run(partial(measure_accelerator, device)))
    results = _results("device", found) + _results("gpu", gpus)
    best = Machine(
        found[0].name,
        found[0].memory,
        median(machine.bandwidth for machine in found),
        {format: median(machine.ops[format] for machine in found) for format in found[0].ops},
        found[0].link,
        found[0].rtt_s,
    )
    machine = {**describe_machine(settings.threads), **_lines(best)}
    return BenchReport("This machine", machine, tuple(results))
