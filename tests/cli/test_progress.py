"""Never silent: lines where there is no terminal, a bar where there is one."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import time

import pytest

from shoal.cli import progress
from shoal.cli.progress import working


def test_a_step_is_named_when_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with working("finding peers"):
        assert capsys.readouterr().err == "finding peers …\n"
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_new_label_is_a_new_line_and_the_same_one_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    with working("pulling") as report:
        report("pulling", 1, 10)
        report("checking", 0, 0)
        report("checking", 5, 10)
    assert capsys.readouterr().err == "pulling …\nchecking …\n"


def test_a_long_step_says_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    with working("pulling") as report:
        report("pulling", 5, 10)
        time.sleep(0.12)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "pulling …"
    assert lines[1] == "pulling … 50%, 0 s"


def test_it_ends_when_the_step_fails(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError), working("pulling"):
        raise RuntimeError
    assert capsys.readouterr().err == "pulling …\n"


def test_a_terminal_gets_a_bar_and_names_cannot_drive_it() -> None:
    code = (
        "import time\nfrom shoal.cli.progress import working\n"
        "with working('pulling') as report:\n    report('[red]x\\x1b[2Jy', 5, 10)\n    time.sleep(0.3)"
    )
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0) as screen:
        subprocess.run(
            [sys.executable, "-c", code], stderr=theirs, check=True, env=os.environ | {"TERM": "xterm"}
        )
        os.close(theirs)
        shown = b""
        try:
            while piece := screen.read(65536):
                shown += piece
        except OSError:
            pass  # Linux says EIO when the other end has closed
    assert b"[red]x" in shown
    assert b"50%" in shown
    assert b"\x1b[2Jy" not in shown
