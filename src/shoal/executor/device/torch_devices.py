"""Torch's accelerators as devices: their names, their memory, and what it means when that runs short."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import partial

import psutil
import torch

from shoal.errors import Busy, OutOfResources
from shoal.executor.device.device import Device, DeviceMemory

SHORT = ("out of memory", "can't allocate memory")
"""What torch says where it has no type of its own for it: on a Mac's GPU, and on the CPU."""
RETRY_S = 2.0
"""After which a device that was full is worth asking again."""

log = logging.getLogger(__name__)


def find_accelerators() -> Iterator[Device]:
    """Every accelerator that torch can use. One that does not even tell its memory is left out."""
    for kind in (torch.cuda, torch.xpu):
        name = kind.__name__.rpartition(".")[2]
        for index in range(kind.device_count() if kind.is_available() else 0):
            memory = partial(_memory, name, index)
            try:
                memory()
                uuid = str(torch.cuda.get_device_properties(index).uuid) if kind is torch.cuda else ""
                yield Device(f"{name}:{index}", kind.get_device_name(index), memory, uuid)
            except RuntimeError as error:
                log.warning("%s:%d cannot be used: %s", name, index, error)
    if torch.backends.mps.is_available():
        yield Device("mps", "Apple GPU", _mps_memory)


def shortage(error: BaseException, device: str) -> Busy | None:
    """What to answer when ``error`` says that a device has no memory left; else ``None``.

    What torch had set aside for later is given back first, so that others may have it.
    """
    short = isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in SHORT)
    )
    if not short:
        return None
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    return Busy(
        f"{device} has no memory left for this step",
        retry_after_s=RETRY_S,
        check="send fewer tokens in one step, or let the node take less with --memory",
    )


def too_small(error: RuntimeError, device: torch.device, what: str) -> Exception:
    """What to raise where something is to lie on a device: ``error`` itself if it is not about memory."""
    if shortage(error, str(device)) is None:
        return error
    return OutOfResources(
        f"{device} has no room for {what}",
        check="close other programs that use it, choose a smaller --span or --format, or lower --memory",
        next_command="shoal doctor",
    )


def _memory(kind: str, index: int) -> DeviceMemory:
    free, total = (torch.cuda if kind == "cuda" else torch.xpu).mem_get_info(index)
    return DeviceMemory(total, free)


def _mps_memory() -> DeviceMemory:
    """The share of the machine's memory that the GPU may have, of which others may hold some."""
    total = torch.mps.recommended_max_memory()
    free = min(total - torch.mps.driver_allocated_memory(), psutil.virtual_memory().available)
    return DeviceMemory(total, max(0, free))
