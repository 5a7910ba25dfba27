"""`shoal key`: keys for the API."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Shoal
from tests.postgres import fresh_schema


def test_a_key_is_shown_once_and_listed_without_it(shoal: Shoal, home: Path) -> None:
    key = shoal("key", "create", "laptop", "--requests", "60").out.strip()
    assert key.startswith("sk-shoal-")
    listed = shoal("key", "list")
    assert "laptop" in listed.out
    assert key not in listed.out
    (entry,) = shoal("key", "list", "--json").data["keys"]
    assert entry["requests_per_minute"] == 60
    assert not any(key.encode() in file.read_bytes() for file in home.rglob("*") if file.is_file())


def test_a_key_ends_by_its_name_or_its_id(shoal: Shoal) -> None:
    made = shoal("key", "create", "laptop", "--json").data
    shoal("key", "create", "phone")
    assert shoal("key", "revoke", "phone").code == 0
    assert shoal("key", "revoke", made["id"]).code == 0
    assert all(key["revoked"] for key in shoal("key", "list", "--json").data["keys"])
    again = shoal("key", "revoke", "laptop")
    assert again.code == 2
    assert "shoal key list" in again.err


def test_a_name_must_be_one(shoal: Shoal) -> None:
    assert shoal("key", "create", "").code == 2
    assert shoal("key", "create", "a\nb").code == 2


def test_at_first_nothing_was_used(shoal: Shoal) -> None:
    assert shoal("key", "usage", "--json").data == {"usage": []}
    assert shoal("key", "list").out == "no keys: shoal key create NAME\n"


def test_keys_lie_in_the_database_that_is_named(
    shoal: Shoal, home: Path, postgres: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = fresh_schema(postgres)
    made = shoal("key", "create", "laptop", "--database", url, "--json").data
    assert shoal("key", "list", "--json").data == {"keys": []}
    monkeypatch.setenv("SHOAL_DATABASE", url)
    assert [key["id"] for key in shoal("key", "list", "--json").data["keys"]] == [made["id"]]
    assert shoal("key", "usage", "--json").data == {"usage": []}
    assert shoal("key", "revoke", "laptop").code == 0
    assert not (home / "gateway.db").exists()


def test_a_database_that_is_away_or_none_is_told_without_its_password(shoal: Shoal) -> None:
    away = shoal("key", "list", "--database", "postgresql://ada:hunter2@127.0.0.1:1/shoal")
    assert (away.code, "127.0.0.1:1" in away.err, "hunter2" in away.err) == (6, True, False)
    wrong = shoal("key", "list", "--database", "mysql://ada:hunter2@127.0.0.1:1/shoal")
    assert (wrong.code, "hunter2" in wrong.err) == (2, False)
