"""A device: where a span or the ends are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

from shoal.config import Settings

CPU = "cpu"


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Bytes."""

    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Device:
    """Where computing is done."""

    name: str
    """As torch and ``--device`` name it: ``cpu``, ``cuda:0``, ``xpu:0``, ``mps``."""
    label: str
    """What its maker calls it; empty for the CPU."""
    memory: Callable[[], DeviceMemory]
    """Its memory as of now."""
    uuid: str = ""
    """The id that its driver knows it by; empty where it has none."""

    @property
    def is_cpu(self) -> bool:
        return self.name == CPU

    @property
    def title(self) -> str:
        """What it is to others, who have no use for its number."""
        return self.label or self.name

    def __str__(self) -> str:
        return f"{self.name} ({self.label})" if self.label else self.name


def cpu() -> Device:
    """The CPU, whose memory is the machine's."""
    return Device(CPU, "", _machine_memory)


def memory_budget(settings: Settings, device: Device) -> int:
    """Bytes that a process may take of a device's memory: as set, else half of what is free now.

    Where several processes share a span, each has a GPU of its own.
    """
    devices = 1 if device.is_cpu else settings.parallel
    return settings.memory or device.memory().free // 2 * devices


def _machine_memory() -> DeviceMemory:
    memory = psutil.virtual_memory()
    return DeviceMemory(memory.total, memory.available)
