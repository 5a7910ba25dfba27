"""`shoal service`: a unit that systemd takes, and a clear word where there is no systemd."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from shoal.cli.service import unit
from tests.cli.conftest import Shoal

# It notes what it is asked. The user's manager is there, unless a file says that it is not.
SYSTEMCTL = """#!/bin/sh
echo "$*" >>"$0.log"
[ -f "$0.broken" ] && { echo "Failed to connect to bus: No medium found" >&2; exit 1; }
case "$*" in
*"show shoal.service"*)
    printf 'UnitFileState=enabled\\nActiveState=active\\nSubState=running\\nMainPID=7\\n';;
esac
"""


class Machine:
    """A machine with a pretended `systemctl`, and the folder of its user's units."""

    def __init__(self, folder: Path) -> None:
        self.program = folder / "systemctl"
        self.unit = folder / "config/systemd/user/shoal.service"
        self.program.write_text(SYSTEMCTL)
        self.program.chmod(0o755)

    def orders(self) -> list[str]:
        lines = Path(f"{self.program}.log").read_text().splitlines()
        return [line.removeprefix("--user --no-pager ") for line in lines]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return Machine(tmp_path)


def test_install_writes_the_unit_starts_it_and_says_so(shoal: Shoal, machine: Machine, home: Path) -> None:
    ran = shoal("service", "install")
    assert ran.code == 0
    assert str(machine.unit) in ran.out
    assert "enable-linger" in ran.err
    text = machine.unit.read_text()
    assert '"-m" "shoal.cli" "up"' in text
    assert f'Environment="SHOAL_HOME={home}"' in text
    assert machine.orders()[1:] == ["daemon-reload", "enable shoal.service", "restart shoal.service"]


def test_install_again_replaces_our_own_unit_and_no_other(shoal: Shoal, machine: Machine) -> None:
    assert shoal("service", "install").code == 0
    assert shoal("service", "install").code == 0
    machine.unit.write_text("[Service]\nExecStart=/bin/true\n")
    for word in ("install", "uninstall"):
        ran = shoal("service", word)
        assert ran.code == 2
        assert "not written by shoal" in ran.err
    assert machine.unit.read_text() == "[Service]\nExecStart=/bin/true\n"


def test_status_says_what_systemd_says(shoal: Shoal, machine: Machine) -> None:
    assert shoal("service", "status", "--json").data == {
        "unit": str(machine.unit),
        "installed": False,
        "enabled": "enabled",
        "active": "active",
        "state": "running",
        "pid": "7",
    }


def test_uninstall_takes_it_away(shoal: Shoal, machine: Machine) -> None:
    shoal("service", "install")
    ran = shoal("service", "uninstall")
    assert ran.code == 0
    assert f"removed {machine.unit}" in ran.out
    assert not machine.unit.exists()
    assert machine.orders()[-2:] == ["disable --now shoal.service", "daemon-reload"]
    assert "no service is installed" in shoal("service", "uninstall").out


@pytest.mark.parametrize("word", ["install", "status", "uninstall"])
def test_without_systemd_it_says_so_and_what_to_do(
    word: str, shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = shoal("service", word)
    assert (ran.code, ran.out) == (1, "")
    assert "has no systemd" in ran.err
    assert "shoal up" in ran.err


def test_without_a_manager_for_this_user_nothing_is_written(shoal: Shoal, machine: Machine) -> None:
    Path(f"{machine.program}.broken").touch()
    ran = shoal("service", "install")
    assert ran.code == 1
    assert "No medium found" in ran.err
    assert not machine.unit.exists()


def test_odd_letters_in_a_path_are_what_they_are() -> None:
    assert unit.quoted('a b"c\\d%e') == '"a b\\"c\\\\d%%e"'
    text = unit.text(["/home/me/$HOME/bin/python"], Path("/srv/100%"))
    assert 'ExecStart="/home/me/$$HOME/bin/python"' in text
    assert 'Environment="SHOAL_HOME=/srv/100%%"' in text


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    path = tmp_path / unit.NAME
    path.write_text(unit.text(["/bin/true", "up"], tmp_path))
    ran = subprocess.run(
        ["systemd-analyze", "--user", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert unit.NAME not in ran.stderr, ran.stderr
