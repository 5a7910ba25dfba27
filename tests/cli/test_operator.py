"""`shoal operator`: one key, a statement for each machine, and no node that starts with a wrong one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from shoal.net.identity import Identity
from shoal.swarm.names import name_of
from shoal.trust.operator import OperatorFile, state
from shoal.types import PeerId

from .conftest import Shoal

OPERATOR, OTHER = (Identity.from_seed(bytes([number]) * 32) for number in (1, 2))


def test_a_key_is_made_once_and_signs_for_machines_by_their_ids(shoal: Shoal, home: Path) -> None:
    assert "shoal operator create" in shoal("operator", "show").err
    assert "shoal operator create" in shoal("operator", "sign", OTHER.peer).err
    operator = shoal("operator", "create", "--json").data["operator"]
    assert shoal("operator", "create").out.strip() == shoal("operator", "show").out.strip() == operator
    assert (home / "operator.key").stat().st_mode & 0o777 == 0o600
    signed = shoal("operator", "sign", OTHER.peer, "--days", "30")
    (home / "statement.json").write_text(signed.out)
    shown = shoal("operator", "show", str(home / "statement.json"), "--json").data
    assert (shown["operator"], shown["peer"], shown["holds"]) == (operator, OTHER.peer, True)
    assert 29 < (shown["not_after"] - time.time()) / 86400 <= 30
    assert name_of(OTHER.peer) in shoal("operator", "show", str(home / "statement.json")).out
    assert "holds until" in signed.err and "signature" in json.loads(signed.out)
    assert shoal("operator", "sign", "Guppy-ByDZ").code == 2


@pytest.mark.parametrize(
    ("peer", "ago_days", "why"),
    [("other", 0, "is a statement about"), ("own", 40, "expired"), ("own", -40, "holds only")],
)
def test_a_node_does_not_start_with_a_statement_about_another_or_out_of_time(
    shoal: Shoal, home: Path, peer: str, ago_days: int, why: str
) -> None:
    own = PeerId(shoal("identity", "create").out.strip())
    about, at = own if peer == "own" else OTHER.peer, time.time() - ago_days * 86400
    file = home / "statement.json"
    statement = state(OPERATOR.peer, about, at, 30, OPERATOR.sign)
    file.write_bytes(OperatorFile.of(about, statement).encoded())
    ran = shoal("serve", "SmolLM2-135M-Instruct", "--operator", str(file))
    assert ran.code == 2 and why in ran.err and f"shoal operator sign {own}" in ran.err
    assert "No such file" in shoal("up", "--operator", str(home / "none.json")).err
