"""What the roofline of this machine allows, beside what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

from shoal.bench.one import DEPTH, STEPS
from shoal.bench.results import BenchReport, Expected, Measurement, describe_machine, of_rounds
from shoal.config import Settings
from shoal.errors import LocalProtocolError
from shoal.executor.device.device import Device, cpu
from shoal.executor.device.find import find_device
from shoal.executor.thread import ComputeThread
from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.sizes import weight_bytes
from shoal.models.store.local_model import LocalModel
from shoal.planning.costs import model_cost
from shoal.planning.measure import BUFFER, measure_accelerator, measure_machine, read_bandwidth
from shoal.planning.roofline import Machine, SpanCost, prefill_time, step_time
from shoal.progress import Progress
from shoal.types import Format


class Roof:
    """What a machine can do at best, and what a model costs on it in each format.

    The machine is looked at again in each round of a benchmark, and the best that was seen counts: what else
    it does slows a look down as it slows the rest. Memory is read in as many bytes as a step reads, since a
    small model stays in the caches.

    Args:
        thread: on which everything is measured.
        costs: of the whole model, by format.
        device: where the model is, the CPU if not said.
    """

    def __init__(
        self,
        thread: ComputeThread,
        threads: int,
        costs: Mapping[Format, SpanCost],
        device: Device | None = None,
    ) -> None:
        self._thread = thread
        self._device = device or cpu()
        self._threads = threads
        self._costs = costs
        self._machine: Machine | None = None
        self._bandwidths = dict.fromkeys(costs, 0.0)

    @property
    def machine(self) -> Machine:
        """The best so far."""
        if self._machine is None:
            raise LocalProtocolError("a roof that was not looked at")
        return self._machine

    async def look(self) -> None:
        """Measure the machine once more. Raises ``OutOfResources``: too little memory is free."""
        await self._thread.run(self._look)

    def _look(self) -> None:
        on_cpu = self._device.is_cpu
        seen = measure_machine(self._threads) if on_cpu else measure_accelerator(self._device)
        self._machine = seen if self._machine is None else _better(self._machine, seen)
        for format, cost in self._costs.items():
            size = min(round(step_time(seen, cost, 1, DEPTH).bytes), BUFFER)
            read = read_bandwidth(self._threads, size) if on_cpu else seen.bandwidth
            self._bandwidths[format] = max(self._bandwidths[format], read)

    def decode(
        self, format: Format, sessions: int, context: int = DEPTH + STEPS // 2
    ) -> Callable[[], Expected]:
        """A step of so many sessions, by default as far on as they are while they are measured."""
        return lambda: Expected(
            step_time(self._for(format), self._costs[format], sessions, context), sessions
        )

    def prefill(self, format: Format, tokens: int) -> Callable[[], Expected]:
        """A prompt."""
        return lambda: Expected(prefill_time(self._for(format), self._costs[format], tokens), tokens)

    def described(self) -> dict[str, Any]:
        """The machine, as a report shows it."""
        machine = {**describe_machine(self._threads), "device": str(self._device)}
        return machine | _lines(self.machine)

    def _for(self, format: Format) -> Machine:
        return replace(self.machine, bandwidth=self._bandwidths[format])


def _better(a: Machine, b: Machine) -> Machine:
    ops = {format: max(a.ops[format], b.ops[format]) for format in a.ops}
    return replace(a, bandwidth=max(a.bandwidth, b.bandwidth), ops=ops)


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
        ShoalError: too little memory is free, the model cannot be served in spans, or the device is not here.
    """
    progress("measuring this machine", 0, 0)

    def find_costs() -> dict[Format, SpanCost]:
        config = read_model_config(open_checkpoint(model.path))
        return {f: model_cost(config, f, settings.kv, weight_bytes(model, f)) for f in formats}

    device = (await thread.run(partial(find_device, settings.device))).device
    roof = Roof(thread, settings.threads, await thread.run(find_costs), device)
    await roof.look()
    return roof


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
