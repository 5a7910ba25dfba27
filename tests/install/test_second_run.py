"""What failed beside other tests runs once more by itself, and fails where it fails again."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/pytest.sh"
TESTS = """
from pathlib import Path

def test_right(): pass
def test_wrong(): raise AssertionError("wrong again")
def test_busy():
    seen = Path(__file__).with_name("seen")
    assert seen.exists() or seen.touch()
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist.plugin"}
    command = [SCRIPT, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


def test_a_test_that_fails_once_is_told_and_passes_by_itself_and_one_that_is_wrong_does_not(
    tmp_path: Path,
) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_some.py").write_text(TESTS)
    busy = run(tmp_path, "-k", "not wrong")
    assert (busy.returncode, busy.stderr) == (0, "")
    assert "1 failed, 1 passed" in busy.stdout
    assert "1 passed" in busy.stdout.partition("by itself")[2]
    wrong = run(tmp_path)
    assert wrong.returncode == 1
    assert "wrong again" in wrong.stdout.partition("by itself")[2]
    mistaken = run(tmp_path, "--no-such-option")
    assert (mistaken.returncode, mistaken.stdout) == (4, "")
