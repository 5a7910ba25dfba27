"""What hatch_build.py makes when Shoal is built or installed."""

from __future__ import annotations

import re
import subprocess
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


def test_the_same_libp2p_is_not_fetched_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = hatch_build.fetch_libp2p(ROOT)
    monkeypatch.setattr(hatch_build.subprocess, "run", lambda *_, **__: pytest.fail("pip was started"))
    assert hatch_build.fetch_libp2p(ROOT) == folder


def test_without_the_locked_libp2p_there_is_no_build(tmp_path: Path) -> None:
    (tmp_path / hatch_build.VENDORED).parent.mkdir(parents=True)
    (tmp_path / "locks").mkdir()
    lock = (ROOT / hatch_build.LIBP2P_LOCK).read_text()
    (tmp_path / hatch_build.LIBP2P_LOCK).write_text(re.sub("sha256:.{8}", "sha256:00000000", lock))
    with pytest.raises(subprocess.CalledProcessError):
        hatch_build.fetch_libp2p(tmp_path)
    assert not (tmp_path / hatch_build.VENDORED).exists()


def test_the_licences_of_libp2p_come_along() -> None:
    folder = hatch_build.fetch_libp2p(ROOT)
    assert {path.name for path in folder.glob("libp2p-*.dist-info/licenses/*")} == {
        "LICENSE-APACHE",
        "LICENSE-MIT",
    }
