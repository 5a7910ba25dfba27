"""`shoal invite` and `shoal join`, from one machine to another."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from shoal.swarm.invite import read_invite
from shoal.swarm.membership import load
from tests.cli.conftest import Shoal

PEER = "12D3KooWGbkv2Ev5EZaQuGWbvHpJnGMNPpgKPMKU1Y6DXA1rWvY5"
ADDRESS = f"/ip4/192.168.1.20/tcp/4001/p2p/{PEER}"


def run_node(home: Path, *, pid: int, swarm: str = "home", name: str = "a", address: str = ADDRESS) -> None:
    """Leave the file that a serving process keeps."""
    (home / "nodes").mkdir(parents=True, exist_ok=True)
    fields = {"pid": pid, "peer": PEER, "swarm": swarm, "model": "m", "span": "0:1", "addresses": [address]}
    (home / "nodes" / f"{name}.json").write_text(json.dumps(fields))


def test_an_invite_is_the_code_alone_on_stdout(shoal: Shoal, home: Path) -> None:
    ran = shoal("invite")
    assert ran.code == 0
    assert ran.out.startswith("shoal1-")
    assert ran.out.count("\n") == 1
    assert read_invite(ran.out).secret == load(home / "swarms", "home").secret
    assert "shoal join" in ran.err


def test_two_invites_are_to_the_same_swarm(shoal: Shoal) -> None:
    assert shoal("invite").out == shoal("invite").out


def test_an_invite_holds_the_addresses_of_the_nodes_that_run_here(shoal: Shoal, home: Path) -> None:
    run_node(home, pid=os.getpid())
    run_node(home, pid=os.getpid(), swarm="other", name="b", address=ADDRESS.replace("4001", "4002"))
    run_node(home, pid=2**22 + 1, name="killed", address=ADDRESS.replace("4001", "4003"))
    (home / "nodes" / "half.json").write_text('{"pid":')
    assert shoal("invite", "--json").data["bootstrap"] == [ADDRESS]


def test_an_invite_begins_with_the_public_address_that_leads_to_the_nodes(shoal: Shoal, home: Path) -> None:
    run_node(home, pid=os.getpid())
    public = f"/ip4/20.0.9.9/tcp/4001/p2p/{PEER}"
    assert shoal("invite", "--public-address", "20.0.9.9", "--json").data["bootstrap"] == [public, ADDRESS]
    # That port is the direct carrier's, and nobody joins there.
    assert shoal("invite", "--public-address", "20.0.9.9:4002", "--json").data["bootstrap"] == [ADDRESS]


def test_an_invite_without_addresses_says_so(shoal: Shoal) -> None:
    assert "holds no address" in shoal("invite").err


def test_an_invite_to_nodes_that_no_other_machine_reaches_says_so(shoal: Shoal, home: Path) -> None:
    run_node(home, pid=os.getpid(), address=ADDRESS.replace(ADDRESS.split("/")[2], "127.0.0.1"))
    assert "no other machine can join" in shoal("invite").err


def test_the_qr_code_does_not_mix_with_the_code(shoal: Shoal) -> None:
    ran = shoal("invite", "--qr")
    assert ran.out.count("\n") == 1
    assert "█" in ran.err


def test_who_joins_is_in_the_same_swarm(shoal: Shoal, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_node(home, pid=os.getpid())
    code = shoal("invite").out
    secret = load(home / "swarms", "home").secret
    monkeypatch.setenv("SHOAL_HOME", str(home.parent / "other"))
    ran = shoal("join", code.strip())
    assert (ran.code, ran.out) == (0, "joined home\n")
    assert "shoal status" in ran.err
    joined = load(home.parent / "other" / "swarms", "home")
    assert (joined.secret, joined.bootstrap) == (secret, (ADDRESS,))


def test_a_code_that_a_terminal_has_broken_up_is_read(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    code = shoal("invite", "--swarm", "attic").out.strip()
    assert shoal("join", code[:30], code[30:60], code[60:]).code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(f"  {code[:40]}\n{code[40:]}\n"))
    assert shoal("join", "-").code == 0


def test_at_a_terminal_the_code_is_asked_for_and_not_shown(
    shoal: Shoal, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = shoal("invite", "--swarm", "attic").out.strip()
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return f"  {code}\n"

    monkeypatch.setenv("SHOAL_HOME", str(home.parent / "other"))
    monkeypatch.setattr("shoal.cli.swarms.getpass", ask)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    ran = shoal("join")
    assert (ran.code, ran.out, len(asked)) == (0, "joined attic\n", 1)
    assert code not in ran.out + ran.err


def test_without_a_terminal_a_code_on_stdin_will_do_and_none_is_an_error(
    shoal: Shoal, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = shoal("invite", "--swarm", "attic").out
    for argv in (("join",), ("join", "-")):
        ran = shoal(*argv)
        assert (ran.code, "shoal join" in ran.err) == (2, True)
    monkeypatch.setattr("sys.stdin", io.StringIO(code))
    assert shoal("join").code == 0


def test_another_swarm_of_the_same_name_needs_another_name(
    shoal: Shoal, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = shoal("invite").out.strip()
    monkeypatch.setenv("SHOAL_HOME", str(home.parent / "other"))
    ours = shoal("invite").out
    ran = shoal("join", code)
    assert ran.code == 5
    assert "--name home-2" in ran.err
    assert shoal("invite").out == ours
    joined = shoal("join", code, "--name", "friends", "--json")
    assert joined.data["next_command"] == "shoal status --swarm friends"


@pytest.mark.parametrize("code", ["hello", "shoal1-0000", "shoal9-00"])
def test_a_bad_invite_ends_with_5_and_changes_nothing(shoal: Shoal, home: Path, code: str) -> None:
    ran = shoal("join", code)
    assert ran.code == 5
    assert "check:" in ran.err
    assert not (home / "swarms").exists()


def test_the_public_swarm_needs_its_flag_and_no_invite(shoal: Shoal) -> None:
    refused = shoal("invite", "--swarm", "public")
    assert refused.code == 5
    assert "hidden states" in refused.err
