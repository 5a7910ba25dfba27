"""`shoal identity`: the identity of a machine, without its secret."""

from __future__ import annotations

import stat
from pathlib import Path

from tests.cli.conftest import Shoal


def test_there_is_none_at_first_and_the_error_says_how_to_make_one(shoal: Shoal) -> None:
    ran = shoal("identity", "show")
    assert (ran.code, ran.out) == (1, "")
    assert "shoal identity create" in ran.err


def test_it_is_made_once_for_its_owner_alone(shoal: Shoal, home: Path) -> None:
    made = shoal("identity", "create").out
    assert made.startswith("12D3KooW")
    assert shoal("identity", "create").out == made
    assert shoal("identity", "show").out == made
    assert stat.S_IMODE((home / "identity.key").stat().st_mode) == 0o600


def test_the_private_key_is_never_printed(shoal: Shoal, home: Path) -> None:
    said = (
        shoal("identity", "create", "--json").out
        + shoal("identity", "show", "--json").out
        + shoal("identity", "path").out
    )
    seed = (home / "identity.key").read_bytes()[4:36]
    assert seed.hex() not in said
    assert set(shoal("identity", "show", "--json").data) == {"peer", "path"}


def test_where_it_is_kept(shoal: Shoal, home: Path) -> None:
    assert shoal("identity", "path").out == f"{home / 'identity.key'}\n"
    assert shoal("identity", "path", "--json").data["exists"] is False


def test_a_key_that_others_may_read_is_refused(shoal: Shoal, home: Path) -> None:
    shoal("identity", "create")
    (home / "identity.key").chmod(0o644)
    ran = shoal("identity", "show")
    assert ran.code == 5
    assert "chmod 600" in ran.err
