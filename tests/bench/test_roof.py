"""`shoal bench device`: the medians of several measurements, of the CPU and of a GPU where there is one."""

from __future__ import annotations

import pytest

from shoal.bench import roof
from shoal.bench.executor import torch_thread
from shoal.bench.results import BenchReport
from shoal.config import Settings
from shoal.executor.device.device import Device, DeviceMemory
from shoal.executor.device.find import choose_device
from shoal.planning.roofline import Machine, PartCost, SpanCost


def machine(bandwidth: float) -> Machine:
    return Machine("m", 1 << 30, bandwidth, {"fp32": 2 * bandwidth}, 1e9, 0.0)


async def measured(monkeypatch: pytest.MonkeyPatch, gpu: Machine | None) -> BenchReport:
    found = iter([machine(3e9), machine(1e9), machine(2e9)])
    monkeypatch.setattr(roof, "measure_machine", lambda threads: next(found))
    card = [Device("cuda:0", "A Card", lambda: DeviceMemory(8 << 30, 8 << 30))] if gpu else []
    monkeypatch.setattr(roof, "find_device", lambda asked: choose_device(asked, card))
    monkeypatch.setattr(roof, "measure_accelerator", lambda device: gpu)
    with torch_thread() as thread:
        return await roof.measure_device(thread, Settings(threads=1), 3, lambda *_: None)


async def test_bandwidth_and_ceilings_are_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await measured(monkeypatch, None)
    assert [(r.name, r.value, r.min, r.max) for r in report.results] == [
        ("device/read", 2, 1, 3),
        ("device/gemm/fp32", 4, 2, 6),
    ]
    assert report.machine["bandwidth_bytes_s"] == 2e9


async def test_a_gpu_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    report = await measured(monkeypatch, machine(4e12))
    assert [(r.name, r.value) for r in report.results][2:] == [("gpu/read", 4000), ("gpu/gemm/fp32", 8000)]


async def test_the_best_of_all_looks_is_what_shares_are_taken_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of looks after a contender was made; each format's memory is read in its own size."""
    looks = iter([machine(1e9), machine(3e9), machine(2e9)])
    sizes: list[int] = []

    def read(threads: int, size: int) -> float:
        assert threads == 1
        sizes.append(size)
        return 1e9 * len(sizes)

    monkeypatch.setattr(roof, "measure_machine", lambda threads: next(looks))
    monkeypatch.setattr(roof, "read_bandwidth", read)
    cost = SpanCost((PartCost(1000, "bf16"),), 0)
    with torch_thread() as thread:
        found = roof.Roof(thread, 1, {"bf16": cost})
        decode = found.decode("bf16", 1)
        for _ in range(3):
            await found.look()
    assert found.machine.bandwidth == 3e9
    assert sizes == [2000] * 3
    assert decode().estimate.seconds == pytest.approx(2000 / 3e9)
