"""What this machine can do at best, measured in a few seconds: the roofline's two lines.

Both are the best of several runs: what else the machine does slows a run down, and nothing speeds it up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import get_args

import numpy as np
import psutil
import torch

from shoal.config import Settings
from shoal.errors import OutOfResources
from shoal.executor.cores import usable_cores
from shoal.executor.device import find
from shoal.executor.device.device import Device
from shoal.executor.device.products import find_products, place_matrix
from shoal.executor.kernels.c_kernels import Matrix, ThreadTeam, library, pack
from shoal.planning.roofline import LINK, RTT_S, Machine
from shoal.progress import Progress
from shoal.types import Format

BUFFER = 256 << 20
"""Bytes read to find the bandwidth: several times the largest caches."""
ROWS, OUT, IN = 512, 5632, 2048
"""A matrix product of a prefill: the MLP of a model of 1.1 billion weights."""
OPERATIONS = 2.0 * ROWS * OUT * IN
GPU_SIDE = 8192
"""Rows and columns of the matrices with which a GPU is measured: smaller ones leave it idle."""
RUNS = 3
LEAST_S = 0.15
"""Each measurement runs so often, and at least for so long."""


def measure_here(settings: Settings, report: Progress) -> Machine:
    """The device that a node here would compute on, with the memory that it would take."""
    device = find.find_device(settings.device).device
    report(f"measuring {'this machine' if device.is_cpu else device}", 0, 0)
    here = (
        measure_machine(settings.threads or usable_cores()) if device.is_cpu else measure_accelerator(device)
    )
    return replace(here, memory=settings.memory or here.memory // 2)


def measure_machine(threads: int, name: str = "this machine") -> Machine:
    """This machine's CPU and memory, with so many threads. Takes a few seconds and 300 MB.

    The ceilings of all formats but fp32 are those of our kernels, and missing where these are not built. Link
    and round trip are assumed, not measured.

    Raises:
        OutOfResources: less memory is free than the measurement needs.
    """
    free = psutil.virtual_memory().available
    if free < 2 * BUFFER:
        raise OutOfResources(
            f"{free >> 20} MiB of memory are free, and measuring takes {2 * BUFFER >> 20}",
            check="close other programs that use memory",
            next_command="shoal doctor",
        )
    bandwidth = read_bandwidth(threads)
    with _torch_threads(threads):
        ops: dict[Format, float] = {"fp32": _torch_ops(), **_kernel_ops(threads)}
    return Machine(name, free, bandwidth, ops, LINK, RTT_S)


def measure_accelerator(device: Device) -> Machine:
    """An accelerator's memory, and its products of many rows in each format. Takes a few seconds.

    Written without an accelerator at hand: its figures have not been held against the maker's yet.

    Raises:
        OutOfResources: less of its memory is free than the measurement needs.
    """
    free, on = device.memory().free, torch.device(device.name)
    if free < 8 * BUFFER:
        raise OutOfResources(
            f"{free >> 20} MiB of {device} are free, and measuring takes {8 * BUFFER >> 20}",
            check="close other programs that use it",
            next_command="shoal doctor",
        )
    source = torch.ones(BUFFER // 4, device=on)
    target = torch.empty_like(source)
    # A copy reads every byte once and writes it once.
    bandwidth = 2 * source.nbytes / _least_s(lambda: target.copy_(source), on)
    weights = np.ones((GPU_SIDE, GPU_SIDE), np.float32)
    rows, products = torch.ones(GPU_SIDE, GPU_SIDE, device=on), find_products(on)

    def ops(format: Format) -> float:
        matrix = place_matrix(pack(weights, _measured_as(format)), on, products)
        return 2.0 * GPU_SIDE**3 / _least_s(lambda: matrix.multiply(rows), on)

    return Machine(device.title, free, bandwidth, {f: ops(f) for f in get_args(Format)}, LINK, RTT_S)


def read_bandwidth(threads: int, size: int = BUFFER) -> float:
    """Bytes read in a second by so many threads, of ``size`` bytes that are read again and again."""
    buffer = torch.ones(max(size // 4, 1))  # of ones: pages of zeros might all be one page
    with _torch_threads(threads):
        return buffer.nbytes / _least_s(buffer.sum)


@contextmanager
def _torch_threads(count: int) -> Generator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _torch_ops() -> float:
    x, weights = torch.ones(ROWS, IN), torch.ones(OUT, IN)
    out = torch.empty(ROWS, OUT)
    return OPERATIONS / _least_s(lambda: torch.mm(x, weights.T, out=out))


def _kernel_ops(threads: int) -> dict[Format, float]:
    """By format, what the kernels reach; nothing where they are not built."""
    if library() is None:
        return {}
    team = ThreadTeam(threads)
    x, weights = np.ones((ROWS, IN), np.float32), np.ones((OUT, IN), np.float32)

    def ops(matrix: Matrix) -> float:
        return OPERATIONS / _least_s(lambda: team.linear(matrix, x))

    formats: list[Format] = [format for format in get_args(Format) if format != "fp32"]
    return {format: ops(pack(weights, _measured_as(format))) for format in formats}


def _measured_as(format: Format) -> Format:
    """What was published runs on the kernel that int4 has."""
    return "int4" if format == "published" else format


def _least_s(run: Callable[[], object], device: torch.device | None = None) -> float:
    """The shortest of several runs, in seconds. The first warms up."""
    best, began, runs = float("inf"), time.perf_counter(), 0
    while runs <= RUNS or time.perf_counter() - began < LEAST_S:
        _wait(device)
        since = time.perf_counter()
        run()
        _wait(device)
        if runs:
            best = min(best, time.perf_counter() - since)
        runs += 1
    return best


def _wait(device: torch.device | None) -> None:
    """Until a GPU has done what it was given."""
    if device is not None:
        torch.accelerator.synchronize(device)
