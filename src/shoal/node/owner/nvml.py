"""An NVIDIA GPU's energy, and who uses it, by NVML: the library that comes with its driver.

https://docs.nvidia.com/deploy/nvml-api/. What a GPU or a driver does not tell is left out, never guessed.
"""

from __future__ import annotations

import ctypes
import logging
import sys
from collections import defaultdict
from collections.abc import Collection
from ctypes import POINTER, byref, c_char_p, c_uint, c_ulonglong, c_void_p
from statistics import fmean
from typing import Protocol

import psutil

LIBRARY = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
OK, NOT_FOUND, TOO_SMALL = 0, 6, 7
"""What calls return: success; no samples since; more samples than there is room for, and how many."""

log = logging.getLogger(__name__)


class Sample(ctypes.Structure):
    """``nvmlProcessUtilizationSample_t``: percentages of one process, some part of a second."""

    _fields_ = (
        ("pid", c_uint),
        ("at", c_ulonglong),
        ("sm", c_uint),
        ("memory", c_uint),
        ("encoder", c_uint),
        ("decoder", c_uint),
    )


class Gpu(Protocol):
    """The accelerator of a node."""

    def joules(self) -> float | None:
        """Energy that it has taken since its driver was loaded; ``None`` where it does not tell."""
        ...

    def used_by_others(self, own: Collection[int]) -> float | None:
        """Share of it that processes not in ``own`` took since the last call; ``None``: it does not tell."""
        ...


class NvidiaGpu:
    """One GPU as NVML knows it.

    Args:
        nvml: the library, initialised.
        handle: its handle of the GPU.
    """

    def __init__(self, nvml: ctypes.CDLL, handle: c_void_p) -> None:
        self._nvml = nvml
        self._handle = handle
        self._last = 0  # microseconds, by the driver's clock

    def joules(self) -> float | None:
        millijoules = c_ulonglong()
        if self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, byref(millijoules)) != OK:
            return None  # GPUs before Volta count none
        return millijoules.value / 1e3

    def used_by_others(self, own: Collection[int]) -> float | None:
        count, since = c_uint(), c_ulonglong(self._last)
        ask = self._nvml.nvmlDeviceGetProcessUtilization
        code = ask(self._handle, None, byref(count), since)
        if code == NOT_FOUND or (code in (OK, TOO_SMALL) and not count.value):
            return 0.0
        if code not in (OK, TOO_SMALL):
            return None
        samples = (Sample * count.value)()
        code = ask(self._handle, samples, byref(count), since)
        if code == NOT_FOUND:
            return 0.0
        if code != OK:
            return None
        taken: defaultdict[int, list[int]] = defaultdict(list)
        for sample in samples[: count.value]:
            self._last = max(self._last, sample.at)
            taken[sample.pid].append(sample.sm)
        # In a container the driver has the host's numbers of processes, ours too: those nobody has here.
        others = [fmean(shares) for pid, shares in taken.items() if pid not in own and psutil.pid_exists(pid)]
        return min(1.0, sum(others) / 100)


def find_gpu(uuid: str) -> NvidiaGpu | None:
    """The GPU with this id; ``None`` where there is no NVML, or it knows of none such.

    Args:
        uuid: as torch has it. Torch and NVML number GPUs differently; this is the same for both.
    """
    try:
        return open_gpu(ctypes.CDLL(LIBRARY), f"GPU-{uuid}")
    except (OSError, AttributeError) as error:
        log.info("what the GPU takes is not known: %s", error)
        return None


def open_gpu(nvml: ctypes.CDLL, uuid: str) -> NvidiaGpu | None:
    """The GPU that NVML calls ``uuid``; ``None`` if it knows of none.

    Raises:
        AttributeError: the library is too old.
    """
    nvml.nvmlDeviceGetHandleByUUID.argtypes = [c_char_p, POINTER(c_void_p)]
    nvml.nvmlDeviceGetTotalEnergyConsumption.argtypes = [c_void_p, POINTER(c_ulonglong)]
    nvml.nvmlDeviceGetProcessUtilization.argtypes = [
        c_void_p,
        POINTER(Sample),
        POINTER(c_uint),
        c_ulonglong,
    ]
    handle = c_void_p()
    if nvml.nvmlInit_v2() != OK or nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), byref(handle)) != OK:
        return None
    return NvidiaGpu(nvml, handle)
