"""A device: where a span or the ends are computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil

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


def _machine_memory() -> DeviceMemory:
    memory = psutil.virtual_memory()
    return DeviceMemory(memory.total, memory.available)
