"""Measuring this machine: figures that can be, within bounds of memory, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import psutil
import pytest
import torch

from shoal.errors import OutOfResources
from shoal.executor.device.device import Device, DeviceMemory, cpu
from shoal.planning import measure
from shoal.types import Format


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small enough for a test: what is measured is then the caches."""
    monkeypatch.setattr(measure, "BUFFER", 1 << 20)
    monkeypatch.setattr(measure, "ROWS", 8)
    monkeypatch.setattr(measure, "LEAST_S", 0.0)


def test_bandwidth_memory_and_a_ceiling_for_each_format_are_found() -> None:
    found = measure.measure_machine(1)
    assert found.bandwidth > 0
    assert 0 < found.memory <= psutil.virtual_memory().total
    assert set(found.ops) == set(get_args(Format))
    assert all(ops > 0 for ops in found.ops.values())


def test_without_the_kernels_float32_stands_in_for_the_other_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "library", lambda: None)
    found = measure.measure_machine(1)
    assert set(found.ops) == {"fp32"}
    assert found.ceiling("int8") == found.ops["fp32"]


def test_torch_keeps_its_threads() -> None:
    before = torch.get_num_threads()
    measure.measure_machine(1)
    assert torch.get_num_threads() == before


def test_memory_is_read_by_as_many_threads_as_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), list[int]()

    def timed(run: Callable[[], object]) -> float:
        seen.append(torch.get_num_threads())
        return 1.0

    monkeypatch.setattr(measure, "_least_s", timed)
    assert measure.read_bandwidth(before + 1, 4096) == 4096
    assert (seen, torch.get_num_threads()) == ([before + 1], before)


def test_a_machine_without_memory_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "BUFFER", 1 << 60)
    with pytest.raises(OutOfResources, match="MiB of memory are free"):
        measure.measure_machine(1)


def test_a_device_is_measured_in_every_format_by_its_own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, which need not be waited for."""
    monkeypatch.setattr(measure, "GPU_SIDE", 256)
    monkeypatch.setattr(measure, "_wait", lambda _: None)
    found = measure.measure_accelerator(cpu())
    assert list(found.ops) == list(get_args(Format))
    assert all(1e8 < ops < 1e14 for ops in found.ops.values())
    assert 1e8 < found.bandwidth < 1e13
    assert found.name == "cpu"


def test_a_device_without_memory_is_not_measured() -> None:
    full = Device("cuda:0", "A Card", lambda: DeviceMemory(1 << 30, 1 << 20))
    with pytest.raises(OutOfResources, match=r"1 MiB of cuda:0 \(A Card\) are free"):
        measure.measure_accelerator(full)
