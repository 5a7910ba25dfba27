"""NVML as its documentation has it, with a library that answers so: who uses a GPU, and what it takes."""

from __future__ import annotations

import ctypes
import os
from typing import Any

import pytest

from shoal.node.owner import nvml
from shoal.node.owner.nvml import NOT_FOUND, OK, TOO_SMALL, NvidiaGpu, Sample, find_gpu, open_gpu

UUID = "GPU-1-2-3"
NOT_SUPPORTED = 3
NEW = 2_000_000
OURS, THEIRS = os.getpid(), os.getppid()
NOBODY = 2**31 - 7


class Call:
    """A function of the library, which takes ``argtypes`` as ctypes' functions do."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.argtypes: list[Any] = []

    def __call__(self, *given: Any) -> int:
        return self._answer(*given)


class Library:
    """One GPU that was used by processes: ``(pid, percent, microseconds)``."""

    def __init__(self, samples: list[tuple[int, int, int]] | int, energy: int = OK) -> None:
        self._samples = samples
        self._energy = energy
        self.nvmlInit_v2 = Call(lambda: OK)
        self.nvmlDeviceGetHandleByUUID = Call(self._handle)
        self.nvmlDeviceGetTotalEnergyConsumption = Call(self._total)
        self.nvmlDeviceGetProcessUtilization = Call(self._utilization)

    def _handle(self, uuid: bytes, handle: Any) -> int:
        handle._obj.value = 1
        return OK if uuid == UUID.encode() else NOT_FOUND

    def _total(self, handle: Any, millijoules: Any) -> int:
        millijoules._obj.value = 12_500
        return self._energy

    def _utilization(self, handle: Any, samples: Any, count: Any, since: Any) -> int:
        if isinstance(self._samples, int):
            return self._samples
        recent = [sample for sample in self._samples if sample[2] > since.value]
        if not recent:
            return NOT_FOUND
        if samples is None:
            count._obj.value = len(recent)
            return TOO_SMALL
        for place, (pid, percent, at) in enumerate(recent):
            samples[place] = Sample(pid, at, percent, 0, 0, 0)
        return OK


def a_gpu(samples: list[tuple[int, int, int]] | int, energy: int = OK) -> NvidiaGpu:
    found = open_gpu(Library(samples, energy), UUID)  # pyright: ignore[reportArgumentType]
    assert found is not None
    return found


def test_a_sample_has_the_layout_of_the_driver_s() -> None:
    assert ctypes.sizeof(Sample) == 32
    assert (Sample.at.offset, Sample.sm.offset) == (8, 16)


def test_others_are_all_processes_but_ours_each_with_its_mean() -> None:
    gpu = a_gpu([(OURS, 90, 1), (THEIRS, 40, 2), (THEIRS, 60, 3)])
    assert gpu.used_by_others({OURS}) == pytest.approx(0.5)


def test_what_was_counted_once_is_not_counted_again() -> None:
    gpu = a_gpu([(THEIRS, 40, NEW)])
    assert gpu.used_by_others({OURS}) == pytest.approx(0.4)
    assert gpu.used_by_others({OURS}) == 0


def test_processes_that_are_not_here_are_ours_under_other_numbers_and_left_out() -> None:
    assert a_gpu([(NOBODY, 90, 1)]).used_by_others({OURS}) == 0


def test_nobody_takes_more_than_all_of_it() -> None:
    assert a_gpu([(THEIRS, 90, 1), (1, 90, 1)]).used_by_others({OURS}) == 1


def test_a_gpu_that_does_not_tell_who_uses_it_says_nothing() -> None:
    assert a_gpu(NOT_SUPPORTED).used_by_others({OURS}) is None


def test_energy_is_in_joules_and_unknown_where_the_gpu_counts_none() -> None:
    assert a_gpu([]).joules() == 12.5
    assert a_gpu([], energy=NOT_SUPPORTED).joules() is None


def test_a_gpu_that_the_driver_does_not_know_is_none() -> None:
    assert open_gpu(Library([]), "GPU-other") is None  # pyright: ignore[reportArgumentType]


def test_torch_s_id_of_a_gpu_is_the_driver_s_without_its_first_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def a_library(name: str) -> Library:
        assert "nv" in name
        return Library([])

    monkeypatch.setattr(ctypes, "CDLL", a_library)
    assert find_gpu("1-2-3") is not None


def test_without_the_library_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "LIBRARY", "libthere-is-none.so.1")
    assert find_gpu("1-2-3") is None
