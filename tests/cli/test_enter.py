"""What a command that needs peers begins with: the right swarm, and a word about the public one."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.cli import enter
from shoal.cli.enter import member_of
from shoal.config import Settings, load
from shoal.errors import NotAllowed, NotRunning
from shoal.swarm.membership import Membership
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


@pytest.mark.parametrize("command", [["status"], ["peers"], ["ping"], ["run", "smollm2", "p"], ["chat"]])
def test_on_a_machine_that_is_in_no_swarm_every_command_says_so(shoal: Shoal, command: list[str]) -> None:
    ran = shoal(*command)
    assert (ran.code, ran.out) == (3, "")
    assert "shoal up" in ran.err


@pytest.mark.parametrize("command", [["status"], ["peers"], ["ping"], ["run", "smollm2", "p"], ["chat"]])
def test_commands_that_look_or_ask_can_be_told_where_to_begin(
    shoal: Shoal, home: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    met: list[tuple[str, ...]] = []

    def joined(settings: Settings, **_: object) -> Membership:
        met.append(settings.bootstrap)
        raise NotRunning("far enough")

    monkeypatch.setattr(enter, "member_of", joined)
    where = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWNXj7WD9xwGQ7gcLCKLa3u3Tm1a5pDVtPQ3uoomATR7M6"
    assert shoal(*command, "--bootstrap", where).code == 3
    assert met == [(where,)]
