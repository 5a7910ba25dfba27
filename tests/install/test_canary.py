"""The canary turns red when a package that pyproject.toml permits no longer keeps what Shoal relies on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WITHIN_S = 900

pytestmark = pytest.mark.swarm


def test_a_transformers_that_breaks_the_seam_turns_the_canary_red(tmp_path: Path) -> None:
    """What it tests in its environment is broken from outside, as a release might: one name is gone."""
    (tmp_path / "broken.py").write_text(
        "from transformers import cache_utils\ndel cache_utils.DynamicLayer\n"
    )
    broken = {"PYTHONPATH": str(tmp_path), "PYTEST_ADDOPTS": "-p broken"}
    done = subprocess.run(
        [str(ROOT / "scripts/canary.sh"), "newest"],
        env=os.environ | broken,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode == 1, done.stdout[-2000:]
    assert "canary: newest: does not work with" in done.stderr, done.stderr[-2000:]
    assert "transformers 5." in done.stderr
    assert "DynamicLayer" in done.stdout
