"""Which device to take: the one that was asked for, or an accelerator that has room, or the CPU."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from shoal.errors import UsageError
from shoal.executor.device.device import CPU, Device, cpu
from shoal.executor.device.signs import makers_here, torch_build, why_none

LEAST_FREE = 1 << 30
"""Bytes that an accelerator must have free to be taken by itself."""


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """A device, and why it was chosen, in words that complete "cpu: …"."""

    device: Device
    why: str


def find_device(asked: str) -> DeviceChoice:
    """The device that was asked for, or with ``auto`` the accelerator with the most room, else the CPU.

    Imports torch only where an accelerator is asked for, or may be here.

    Raises:
        UsageError: it is not here; says what is.
    """
    why = why_none(makers_here(), torch_build())
    if asked == CPU or (asked == "auto" and why):
        return DeviceChoice(cpu(), why if asked == "auto" else "it was asked for")
    return choose_device(asked, accelerators(), why)


def choose_device(asked: str, found: Sequence[Device], why_not: str = "") -> DeviceChoice:
    """As :func:`find_device`, among the accelerators that were found.

    Args:
        why_not: why there may be none.
    """
    if asked == "auto":
        if not found:
            return DeviceChoice(cpu(), why_not or "torch finds no accelerator that it can use")
        free, _, best = max((device.memory().free, -number, device) for number, device in enumerate(found))
        if free < LEAST_FREE:
            return DeviceChoice(cpu(), f"{best} has only {free >> 20} MiB free")
        return DeviceChoice(best, f"of the accelerators here it has the most room, {free / 2**30:.1f} GiB")
    wanted = f"{asked}:0" if asked in ("cuda", "xpu") else asked
    device = next((device for device in found if device.name == wanted), None)
    if device is None:
        here = ", ".join(["cpu", *map(str, found)])
        raise UsageError(
            f"this machine has no device {asked} that can be used: {why_not or 'torch does not find it'}",
            check=f"choose one that is here: {here}; or auto",
            next_command="shoal doctor",
        )
    return DeviceChoice(device, "it was asked for")


@functools.cache
def accelerators() -> tuple[Device, ...]:
    """The accelerators that torch can use, in its order. Imports torch."""
    from shoal.executor.device.torch_devices import find_accelerators  # noqa: PLC0415

    return tuple(find_accelerators())
