"""A run that was stopped goes on with what it had measured; a run of anything else begins anew."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal.bench.kept.journal import Journal, code_digest, open_journal
from shoal.bench.results import Contender, Expected, Measurement, in_turns
from shoal.planning.roofline import Estimate
from shoal.progress import silent

RUN = {"model": "sha256:1", "asked": ["int8", 3]}
NOW = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


def opened(folder: Path, run: dict[str, object] = RUN, *, anew: bool = False, after: float = 1.0) -> Journal:
    return open_journal(folder, run, anew=anew, now=NOW + timedelta(hours=after))


class Machine:
    """Gives 1, 2, 3 … and is stopped after so many."""

    def __init__(self, stops_after: int) -> None:
        self.measured = 0
        self._stops_after = stops_after

    async def run(self) -> float:
        if self.measured == self._stops_after:
            raise KeyboardInterrupt
        self.measured += 1
        return self.measured

    def contenders(self) -> list[Contender]:
        return [Contender(name, "tok/s", self.run) for name in ("a", "b")]


async def test_a_run_that_was_stopped_goes_on_after_its_last_whole_round(tmp_path: Path) -> None:
    journal = opened(tmp_path, after=0)
    assert journal.said == ""
    first = Machine(stops_after=7)  # the first round, two that count, and half of the next
    with pytest.raises(KeyboardInterrupt):
        await in_turns(first.contenders(), 4, silent, earlier=journal.rounds("int8"))
    journal = opened(tmp_path)
    assert "began at 12:30 UTC: 0 parts of it are measured, and 2 rounds of the next" in journal.said
    second = Machine(stops_after=99)
    found = await in_turns(second.contenders(), 4, silent, earlier=journal.rounds("int8"))
    assert second.measured == 6  # the first round again, and the two that were left
    assert [result.rounds for result in found] == [(3, 5, 3, 5), (4, 6, 4, 6)]
    journal.done("int8", found, ["a note"])
    third = Machine(stops_after=0)
    assert len(await in_turns(third.contenders(), 4, silent, earlier=journal.rounds("int8"))) == 2


async def test_parts_that_are_done_keep_their_results_until_the_run_is_over(tmp_path: Path) -> None:
    whole = Measurement(
        "a",
        2.0,
        "tok/s",
        1.0,
        3.0,
        Expected(Estimate(0.25, "memory", 100.0, 200.0), 8),
        rounds=(1.0, 2.0, 3.0),
    )
    opened(tmp_path, after=0).done("int8", [whole], ["a note"])
    journal = opened(tmp_path)
    assert "1 parts of it are measured" in journal.said
    assert journal.unit("int8").results == [whole] and journal.unit("int8").notes == ["a note"]
    assert journal.unit("int4").results is None
    journal.end()
    assert opened(tmp_path).said == "" and opened(tmp_path).unit("int8").results is None


def test_what_is_no_part_of_this_run_is_not_gone_on_with(tmp_path: Path) -> None:
    opened(tmp_path, after=0).done("int8", [], [])
    assert opened(tmp_path, RUN | {"code": "new"}).unit("int8").results is None
    assert opened(tmp_path, anew=True).unit("int8").results is None
    late = opened(tmp_path, after=25)
    assert "older than a day" in late.said and late.unit("int8").results is None
    assert opened(tmp_path).unit("int8").results == []
    (file,) = tmp_path.glob("*.json")
    file.write_text(file.read_text()[:40])
    damaged = opened(tmp_path)
    assert "is damaged" in damaged.said and damaged.unit("int8").results is None


def test_the_state_of_the_code_is_part_of_a_run() -> None:
    assert code_digest() == code_digest() != ""
