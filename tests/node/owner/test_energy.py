"""Joules of a token: a node's part of what its machine takes."""

from __future__ import annotations

import pytest

from shoal.node.owner.energy import KEEP, EnergyMeter
from shoal.node.owner.machine import Joules, MachineReading

START = MachineReading(at=0.0, cores=4, busy_s=100.0, own_s=50.0, joules=Joules(1000.0, 0.0))


def later(seconds: float, own_s: float, others_s: float, cpu: float, gpu: float = 0.0) -> MachineReading:
    """A reading after ``START``, with what was taken since."""
    joules = Joules(1000.0 + cpu, gpu)
    return MachineReading(seconds, 4, 100.0 + own_s + others_s, 50.0 + own_s, joules=joules)


def test_a_node_that_computes_all_the_time_and_alone_takes_all_of_it() -> None:
    meter = EnergyMeter()
    meter.note(START, later(2.0, own_s=8.0, others_s=0.0, cpu=60.0), forward_s=2.0, tokens=30)
    assert meter.joules == pytest.approx(60.0)
    assert meter.token_joules == pytest.approx(2.0)


def test_what_other_programs_take_is_not_its() -> None:
    meter = EnergyMeter()
    meter.note(START, later(2.0, own_s=2.0, others_s=6.0, cpu=60.0), forward_s=2.0, tokens=30)
    assert meter.token_joules == pytest.approx(0.5)


def test_nor_is_what_the_machine_takes_while_it_waits() -> None:
    meter = EnergyMeter()
    meter.note(START, later(2.0, own_s=2.0, others_s=0.0, cpu=60.0), forward_s=0.5, tokens=30)
    assert meter.token_joules == pytest.approx(0.5)


def test_a_gpu_s_energy_is_added_for_the_time_of_its_forwards() -> None:
    meter = EnergyMeter()
    reading = later(2.0, own_s=1.0, others_s=3.0, cpu=40.0, gpu=600.0)
    meter.note(START, reading, forward_s=1.0, tokens=100)
    assert meter.joules == pytest.approx(0.5 * (40.0 / 4 + 600.0))


def test_a_machine_that_tells_nothing_leaves_it_unknown() -> None:
    silent = MachineReading(2.0, 4, 108.0, 58.0)
    for before, after in ((silent, silent), (START, silent), (silent, START)):
        meter = EnergyMeter()
        meter.note(before, after, forward_s=2.0, tokens=30)
        assert (meter.joules, meter.token_joules) == (0.0, 0.0)


def test_readings_at_one_time_say_nothing() -> None:
    meter = EnergyMeter()
    meter.note(START, START, forward_s=0.0, tokens=0)
    assert (meter.joules, meter.token_joules) == (0.0, 0.0)


def test_the_last_tokens_count_most_and_idle_times_change_nothing() -> None:
    meter = EnergyMeter()
    meter.note(START, later(2.0, own_s=8.0, others_s=0.0, cpu=60.0), forward_s=2.0, tokens=30)
    meter.note(START, later(2.0, own_s=0.0, others_s=0.0, cpu=20.0), forward_s=0.0, tokens=0)
    assert meter.token_joules == pytest.approx(2.0)
    meter.note(START, later(2.0, own_s=8.0, others_s=0.0, cpu=30.0), forward_s=2.0, tokens=30)
    assert meter.token_joules == pytest.approx((KEEP * 60 + 30) / (KEEP * 30 + 30))
