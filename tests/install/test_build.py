"""What hatch_build.py makes when Shoal is built or installed."""

from __future__ import annotations

from pathlib import Path

import hatch_build
import pytest

ROOT = Path(__file__).parents[2]


def test_the_same_kernels_are_not_compiled_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    made = hatch_build.compile_kernels(ROOT)
    before = [path.stat().st_mtime_ns for path in made]
    monkeypatch.setattr(hatch_build, "ThreadPoolExecutor", lambda *_: pytest.fail("the compiler was started"))
    assert made and hatch_build.compile_kernels(ROOT) == made
    assert [path.stat().st_mtime_ns for path in made] == before
