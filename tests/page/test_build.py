"""The page as it is built: its parts do what they say, and it needs nothing from elsewhere."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hatch_build
import pytest

ROOT = Path(__file__).parents[2]
LARGEST_BUNDLE = 200_000
"""Bytes, compressed."""


def miss(reason: str) -> None:
    """Without network at setup some of this cannot run; where it counts it must."""
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@pytest.fixture(scope="module")
def built() -> Path:
    folder = ROOT / hatch_build.BUILT_PAGE
    if not (folder / "index.html").is_file():
        miss("the page is not built: python hatch_build.py page")
    return folder


def test_the_parts_of_the_page_do_what_they_say() -> None:
    run = hatch_build.run_npm(["test"], ROOT / "page", capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout
    assert re.search(r"pass [1-9]", run.stdout), run.stdout


def test_its_types_fit_together() -> None:
    if not (ROOT / "page/node_modules/.bin/svelte-check").exists():
        miss("page/node_modules is not there: npm ci")
    run = hatch_build.run_npm(["run", "check"], ROOT / "page", capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout


def test_what_is_built_was_built_from_these_sources(built: Path) -> None:
    assert (built / hatch_build.MADE_OF).read_text() == hatch_build.page_digest(ROOT), (
        "build it: python hatch_build.py page"
    )


def test_it_loads_nothing_from_elsewhere(built: Path) -> None:
    index = (built / "index.html").read_text()
    loaded = re.findall(r'(?:src|href)="([^"]*)"', index)
    assert loaded
    assert all(name.startswith("./") and (built / name).is_file() for name in loaded), loaded
    for sheet in built.glob("assets/*.css"):
        assert not re.search(r"@import|url\((?!data:)", sheet.read_text())


def test_it_has_no_script_or_style_that_the_policy_would_refuse(built: Path) -> None:
    index = (built / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=", index)


def test_it_is_small(built: Path) -> None:
    size = sum(len(gzip.compress(path.read_bytes())) for path in built.rglob("*") if path.is_file())
    assert size < LARGEST_BUNDLE


def test_without_the_registry_it_is_left_out_and_an_older_one_goes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "page", tmp_path / "page", ignore=shutil.ignore_patterns("node_modules"))
    shutil.copy(ROOT / "hatch_build.py", tmp_path)
    (tmp_path / hatch_build.BUILT_PAGE).mkdir(parents=True)
    (tmp_path / hatch_build.BUILT_PAGE / "index.html").write_text("an older page")
    nowhere = {"npm_config_registry": "http://127.0.0.1:9/", "npm_config_cache": str(tmp_path / "cache")}
    run = subprocess.run(
        [sys.executable, "hatch_build.py", "page"],
        cwd=tmp_path,
        env=os.environ | nowhere | {"npm_config_fetch_retry_mintimeout": "10"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 1
    assert "the gateway's page is left out" in run.stderr
    assert "python hatch_build.py page" in run.stderr
    assert not (tmp_path / hatch_build.BUILT_PAGE).exists()


def test_the_same_sources_are_not_built_twice(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hatch_build, "run_npm", lambda *_, **__: pytest.fail("npm was started"))
    assert hatch_build.build_page(ROOT) == ROOT / hatch_build.BUILT_PAGE
