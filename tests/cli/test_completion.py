"""`shoal completion`: the shell asks, and the process answers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.cli.shell import completion
from tests.cli.conftest import Shoal


def completed(words: str, home: Path) -> list[str]:
    """What bash would be offered for the last word."""
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['shoal']; import shoal.cli.main as m; m.main()"],
        env=os.environ
        | {"SHOAL_HOME": str(home), "_SHOAL_COMPLETE": "complete_bash"}
        | {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout.split()


def test_commands_options_and_names_are_completed(home: Path) -> None:
    assert completed("shoal stat", home) == ["status"]
    assert completed("shoal status --wa", home) == ["--watch"]
    assert completed("shoal run Smol", home) == ["SmolLM2-135M-Instruct"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_script_is_printed(shell: str, shoal: Shoal) -> None:
    ran = shoal("completion", "show", shell)
    assert (ran.code, ran.err) == (0, "")
    assert "_SHOAL_COMPLETE" in ran.out


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_takes_the_script(shoal: Shoal, tmp_path: Path) -> None:
    script = tmp_path / "shoal.bash"
    script.write_text(shoal("completion", "show", "bash").out)
    ran = subprocess.run(
        ["bash", "-c", f"source {script}; complete -p shoal"], capture_output=True, text=True, check=True
    )
    assert "_shoal_completion" in ran.stdout


def test_install_says_where_and_twice_is_no_harm(
    shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".bashrc").write_text("export EDITOR=vi\n")
    for _ in range(2):
        ran = shoal("completion", "install", "bash", "--json")
        assert ran.data["shell"] == "bash"
        assert Path(ran.data["path"]).is_relative_to(tmp_path)
    lines = (tmp_path / ".bashrc").read_text().splitlines()
    assert lines[0] == "export EDITOR=vi"
    assert sum("shoal" in line for line in lines) == 1


def test_a_shell_that_is_not_known_is_refused(shoal: Shoal) -> None:
    ran = shoal("completion", "show", "tcsh")
    assert (ran.code, ran.out) == (2, "")
    assert "bash, zsh, fish" in ran.err


def test_a_shell_that_cannot_be_told_is_asked_for(shoal: Shoal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_this_shell", lambda: "")
    assert "cannot tell which shell" in shoal("completion", "install").err
