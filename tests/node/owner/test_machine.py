"""What a node reads of its machine: the CPU time of others is all but its own and its children's."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from shoal.executor.device.device import Device, DeviceMemory, cpu
from shoal.node.owner import machine as machine_module
from shoal.node.owner.machine import (
    Joules,
    MachineReading,
    MachineSensors,
    ThisMachine,
    machine_of,
    use_between,
)
from shoal.node.owner.rapl import Rapl

BEFORE = MachineReading(at=10.0, cores=4, busy_s=1000.0, own_s=300.0)


def test_others_have_what_was_used_and_not_by_the_node_as_a_share_of_all_cores() -> None:
    after = MachineReading(at=12.0, cores=4, busy_s=1006.0, own_s=304.0)
    assert use_between(BEFORE, after).cpu == pytest.approx(2 / 8)


def test_a_node_s_own_load_is_nobody_else_s() -> None:
    after = MachineReading(at=12.0, cores=4, busy_s=1008.0, own_s=308.0)
    assert use_between(BEFORE, after).cpu == 0


@pytest.mark.parametrize(("busy_s", "own_s"), [(1001.0, 301.1), (1001.0, 299.0), (1100.0, 300.0)])
def test_counters_that_are_not_in_step_stay_within_bounds(busy_s: float, own_s: float) -> None:
    assert 0 <= use_between(BEFORE, replace(BEFORE, at=12.0, busy_s=busy_s, own_s=own_s)).cpu <= 1


def test_two_readings_at_one_time_show_no_use() -> None:
    assert use_between(BEFORE, BEFORE).cpu == 0


def test_gpu_and_battery_are_those_of_the_later_reading() -> None:
    use = use_between(BEFORE, replace(BEFORE, at=12.0, gpu=0.5, on_battery=True))
    assert (use.gpu, use.on_battery) == (0.5, True)


def burn(seconds: float) -> subprocess.Popen[bytes]:
    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    return subprocess.Popen([sys.executable, "-c", code])


def test_what_the_node_and_its_children_compute_is_its_own_also_when_they_have_ended(tmp_path: Path) -> None:
    here = ThisMachine(Rapl(tmp_path))
    before = a_reading(here)
    began = time.process_time()
    while time.process_time() < began + 0.2:
        pass
    child = burn(0.4)
    while child.poll() is None and a_reading(here).own_s < before.own_s + 0.5:
        time.sleep(0.02)
    running = a_reading(here)
    child.wait()
    after = a_reading(here)
    assert before.own_s + 0.5 <= running.own_s <= after.own_s
    assert after.own_s - before.own_s >= 0.6
    assert after.busy_s - before.busy_s >= 0.5
    assert after.at > before.at
    assert after.cores == psutil.cpu_count()


@pytest.mark.parametrize(
    ("battery", "expected"),
    [
        (None, False),
        (SimpleNamespace(power_plugged=True), False),
        (SimpleNamespace(power_plugged=None), False),
        (SimpleNamespace(power_plugged=False), True),
    ],
)
def test_on_battery_is_a_battery_in_use_and_not_one_of_which_nobody_knows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, battery: Any, expected: bool
) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert a_reading(ThisMachine(Rapl(tmp_path))).on_battery is expected


def test_a_system_without_such_a_sensor_has_no_battery(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert a_reading(ThisMachine(Rapl(tmp_path))).on_battery is False


@pytest.mark.parametrize("error", [PermissionError("/proc/stat"), psutil.AccessDenied(1)])
def test_a_system_that_keeps_its_load_to_itself_is_not_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def refused() -> None:
        raise error

    monkeypatch.setattr(psutil, "cpu_times", refused)
    assert ThisMachine(Rapl(tmp_path)).read() is None


def a_reading(machine: MachineSensors) -> MachineReading:
    reading = machine.read()
    assert reading is not None
    return reading


class PretendGpu:
    """One that has taken so many joules, or does not tell."""

    def __init__(self, joules: float | None) -> None:
        self._joules = joules
        self.asked: list[set[int]] = []

    def joules(self) -> float | None:
        return self._joules

    def used_by_others(self, own: Any) -> float | None:
        self.asked.append(set(own))
        return 0.75


def counting(folder: Path) -> Callable[[], Rapl]:
    """Processors that tell their energy."""
    zone = folder / "intel-rapl:0"
    zone.mkdir()
    (zone / "name").write_text("package-0")
    for file, value in (("energy_uj", 5), ("max_energy_range_uj", 100)):
        (zone / file).write_text(str(value))
    return lambda: Rapl(folder)


def test_a_gpu_is_asked_who_else_uses_it_and_what_it_takes(tmp_path: Path) -> None:
    gpu = PretendGpu(40.0)
    reading = a_reading(ThisMachine(Rapl(tmp_path), gpu))
    assert reading.gpu == 0.75
    assert psutil.Process().pid in gpu.asked[0]
    assert reading.joules == Joules(0.0, 40.0)


def test_energy_is_said_only_where_what_the_node_computes_on_tells_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine_module, "Rapl", counting(tmp_path))
    gpus = {"told": PretendGpu(3.0), "silent": PretendGpu(None)}
    monkeypatch.setattr(machine_module, "find_gpu", gpus.get)

    def joules(name: str, uuid: str = "", parallel: int = 1) -> Joules | None:
        device = cpu() if name == "cpu" else Device(name, "A GPU", lambda: DeviceMemory(1, 1), uuid)
        return a_reading(machine_of(device, parallel)).joules

    assert joules("cpu") == Joules(0.0, 0.0)
    assert joules("cuda:0", "told") == Joules(0.0, 3.0)
    assert joules("cuda:0", "silent") is None
    assert joules("cuda:0", "of nobody") is None
    assert joules("cuda:0", "told", parallel=2) is None
    assert joules("mps") is None
