"""`shoal market`: as a table for other programs, and either that or JSON."""

from __future__ import annotations

import csv

import pytest

from shoal.cli.status import market as module
from shoal.swarm.market import CSV_COLUMNS, Market
from tests.cli.conftest import Shoal
from tests.swarm.test_market import node, offered


@pytest.fixture(autouse=True)
def swarm(monkeypatch: pytest.MonkeyPatch) -> Market:
    """One that no network is needed for."""
    found = offered(node("a"), node("b", 0, 15))
    monkeypatch.setattr(module, "looking", lambda *_: found)
    return found


def test_it_is_written_as_csv_and_nothing_else(shoal: Shoal) -> None:
    ran = shoal("market", "--csv")
    header, *lines = csv.reader(ran.out.splitlines())
    assert (ran.code, tuple(header)) == (0, CSV_COLUMNS)
    assert sorted(line[header.index("peer")] for line in lines) == ["a", "b"]


def test_csv_and_json_at_once_are_refused(shoal: Shoal) -> None:
    ran = shoal("market", "--csv", "--json")
    assert (ran.code, "cannot be combined" in ran.out + ran.err) == (2, True)
