"""Energy from Linux' powercap: which zones count, where a counter begins again, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.node.owner.rapl import Rapl

RANGE = 262_143_328_850


def zone(folder: Path, path: str, name: str, microjoules: int, range: int = RANGE) -> Path:
    """A zone as the kernel shows it; returns its counter."""
    made = folder / path
    made.mkdir(parents=True)
    (made / "name").write_text(f"{name}\n")
    (made / "max_energy_range_uj").write_text(f"{range}\n")
    (made / "energy_uj").write_text(f"{microjoules}\n")
    return made / "energy_uj"


def test_it_counts_from_when_it_was_first_asked(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 5_000_000_000)
    rapl = Rapl(tmp_path)
    assert rapl.joules() == 0
    counter.write_text("5012500000\n")
    assert rapl.joules() == 12.5
    counter.write_text("5013000000\n")
    assert rapl.joules() == 13.0


def test_packages_and_memory_add_up_and_what_is_inside_of_them_does_not_count_twice(tmp_path: Path) -> None:
    names = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "uncore",
        "intel-rapl:0:2": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
    }
    counters = [zone(tmp_path, path, name, 0) for path, name in names.items()]
    rapl = Rapl(tmp_path)
    for number, counter in enumerate(counters):
        counter.write_text(str(10**number * 1_000_000))
    assert rapl.joules() == 1 + 1000 + 10_000


def test_a_counter_that_has_come_to_the_end_of_its_range_begins_again(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 900, range=1000)
    rapl = Rapl(tmp_path)
    for microjoules in (950, 50, 950, 40):
        counter.write_text(str(microjoules))
        rapl.joules()
    assert rapl.joules() == pytest.approx((50 + 100 + 900 + 90) / 1e6)


def test_without_zones_nothing_is_said(tmp_path: Path) -> None:
    assert Rapl(tmp_path).joules() is None
    assert Rapl(tmp_path / "missing").joules() is None


def test_nor_where_they_are_root_s_alone(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 7)
    counter.unlink()
    counter.mkdir()  # to read it fails, for root too
    assert Rapl(tmp_path).joules() is None


@pytest.mark.parametrize("text", ["", "-5", "lots", "1.5"])
def test_a_counter_that_makes_no_sense_is_left_out(tmp_path: Path, text: str) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 7).write_text(text)
    assert Rapl(tmp_path).joules() is None


def test_one_that_can_no_longer_be_read_stands_still_and_goes_on_later(tmp_path: Path) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    rapl = Rapl(tmp_path)
    counter.write_text("4000000")
    assert rapl.joules() == 4
    counter.write_text("")
    assert rapl.joules() == 4
    counter.write_text("9000000")
    assert rapl.joules() == 9
