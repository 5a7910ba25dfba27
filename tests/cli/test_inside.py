"""What a command that needs peers begins with: the right swarm, and a word about the public one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.cli.inside import member_of, near, wanted_dtype
from shoal.config import load
from shoal.errors import NotAllowed, NotRunning, UsageError
from shoal.swarm.here import RunningNode, shown
from tests.cli.conftest import Shoal


def test_a_client_needs_a_swarm_and_a_node_makes_one(home: Path) -> None:
    with pytest.raises(NotRunning, match="no swarm named 'home'"):
        member_of(load())
    made = member_of(load(), create=True)
    assert member_of(load()) == made


def test_the_public_swarm_is_explained_once(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotAllowed):
        member_of(load({"swarm": "public"}))
    assert member_of(load({"swarm": "public", "public": True})).secret is None
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("command", [["status"], ["peers"], ["ping"], ["run", "m", "p"], ["chat"]])
def test_on_a_machine_that_is_in_no_swarm_every_command_says_so(shoal: Shoal, command: list[str]) -> None:
    ran = shoal(*command)
    assert (ran.code, ran.out) == (3, "")
    assert "shoal up" in ran.err


def test_a_dtype_is_one_that_shoal_computes_in() -> None:
    assert wanted_dtype(None) is None
    assert wanted_dtype("bfloat16") == "bfloat16"
    with pytest.raises(UsageError, match="int4"):
        wanted_dtype("int4")


def test_nodes_of_this_machine_are_found_without_discovery(home: Path) -> None:
    address = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooW"
    node = RunningNode(os.getpid(), "12D3KooW", "home", addresses=(address,))
    with shown(home / "nodes", node):
        assert near(load({"bootstrap": ["/x"]})).bootstrap == (address, "/x")
        assert near(load({"swarm": "other"})).bootstrap == ()
