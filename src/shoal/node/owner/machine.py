"""What a node asks its machine: how much of it others use, and how much energy it has taken. The only seam.

Processor times and energies are counted up since some time in the past: what happened between two readings is
the difference. (:mod:`shoal.testing.machine` pretends a machine.)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

import psutil

from shoal.executor.device.device import Device
from shoal.node.owner.nvml import Gpu, find_gpu
from shoal.node.owner.rapl import Rapl
from shoal.node.owner.yielding import OtherUse

log = logging.getLogger(__name__)

BUSY_TIMES = ("user", "nice", "system", "irq", "softirq")
"""Fields of psutil's CPU times in which programs run: not those in which cores idle, wait for a disk, or are
taken by another virtual machine. A guest's time is in ``user`` already."""


@dataclass(frozen=True, slots=True)
class Joules:
    """Energy that was taken since some time in the past."""

    cpu: float
    """By the processors."""
    gpu: float
    """By the node's GPU, if it has one."""


@dataclass(frozen=True, slots=True)
class MachineReading:
    """One look at a machine."""

    at: float
    """Seconds, by a clock that only runs forwards."""
    cores: int
    """Logical ones, whose time is counted."""
    busy_s: float
    """Seconds of all cores in which any program ran."""
    own_s: float
    """Those of the node and of the processes that it has started."""
    gpu: float | None = None
    """Share of the node's GPU that other programs have taken since the last reading."""
    on_battery: bool = False
    joules: Joules | None = None
    """Energy that what the node computes on has taken; ``None`` where the machine does not tell."""


class UnknownGpu:
    """An accelerator that tells nothing."""

    def joules(self) -> None:
        """It does not count."""

    def used_by_others(self, own: Collection[int]) -> None:
        """It does not know."""


class MachineSensors(Protocol):
    """The machine that a node runs on."""

    def read(self) -> MachineReading | None:
        """Look at it; ``None`` where it does not tell. Takes milliseconds, so not for the event loop."""
        ...


class ThisMachine:
    """The machine on which this process runs, by psutil, Linux' powercap and NVIDIA's NVML.

    Args:
        rapl: what counts its processors' energy.
        gpu: the accelerator that the node computes on, where it can be asked.
    """

    def __init__(self, rapl: Rapl, gpu: Gpu | None = None) -> None:
        self._rapl = rapl
        self._gpu = gpu
        self._process = psutil.Process()

    def read(self) -> MachineReading | None:
        try:
            times, family = psutil.cpu_times(), self._family()
        except (OSError, psutil.Error) as error:  # some systems keep it from those who are not root
            log.info("how much this machine is used cannot be read: %s", error)
            return None
        return MachineReading(
            at=time.monotonic(),
            cores=psutil.cpu_count() or 1,
            busy_s=sum(float(getattr(times, field, 0.0)) for field in BUSY_TIMES),
            own_s=sum(family.values()),
            gpu=self._gpu.used_by_others(family.keys()) if self._gpu else None,
            on_battery=_on_battery(),
            joules=self._joules(),
        )

    def _joules(self) -> Joules | None:
        """On a GPU that does not tell nothing is said: what the CPU takes beside it is the lesser part."""
        cpu, gpu = self._rapl.joules(), self._gpu.joules() if self._gpu else 0.0
        if gpu is None or (cpu is None and self._gpu is None):
            return None
        return Joules(cpu or 0.0, gpu)

    def _family(self) -> dict[int, float]:
        """CPU seconds of this process and its descendants, each with those of its children that ended."""
        found: dict[int, float] = {}
        for process in (self._process, *self._process.children(recursive=True)):
            with suppress(psutil.Error):  # it has just ended: its parent has its time
                found[process.pid] = sum(process.cpu_times()[:4])
        return found


def machine_of(device: Device, parallel: int) -> MachineSensors:
    """The machine of a node that computes on ``device``, in ``parallel`` processes."""
    if device.is_cpu:
        return ThisMachine(Rapl())
    # The processes of one span have a GPU each; of several nothing is known.
    gpu = find_gpu(device.uuid) if device.uuid and parallel == 1 else None
    return ThisMachine(Rapl(), gpu or UnknownGpu())


def use_between(before: MachineReading, after: MachineReading) -> OtherUse:
    """What the machine was used for, between two readings, beside the node."""
    all_s = (after.at - before.at) * after.cores
    other_s = (after.busy_s - before.busy_s) - max(0.0, after.own_s - before.own_s)
    # The system counts in ticks, and not all of them at the same time: small differences go below 0.
    cpu = min(1.0, max(0.0, other_s / all_s)) if all_s > 0 else 0.0
    return OtherUse(cpu, after.gpu, after.on_battery)


def _on_battery() -> bool:
    """Whether the machine runs on its battery; one without a battery does not."""
    # Not on every system, and psutil's stubs know no type for it.
    sensors = cast("Any", getattr(psutil, "sensors_battery", None))
    battery = sensors() if sensors is not None else None
    return battery is not None and battery.power_plugged is False
