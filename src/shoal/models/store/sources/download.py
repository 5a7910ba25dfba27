"""One file of known contents, brought in as many goes as it takes.

What has come lies beside the place where the file is to be, and stays there when a download is killed or
breaks off: the next goes on behind it. It is named by the hash of the whole, so that nothing is added to what
came of another file, and that hash is checked when all is there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from shoal.errors import BadWeights
from shoal.models.checkpoint.digest import file_sha256
from shoal.progress import Progress

SUFFIX = ".shoal-partial"


@dataclass(frozen=True, slots=True)
class Download:
    """What is to be downloaded."""

    file: Path
    """Where it is to be, when it is whole."""
    sha256: str
    """Hexadecimal."""
    size: int
    """Bytes."""

    @property
    def partial(self) -> Path:
        """What has come so far."""
        return self.file.with_name(f"{self.sha256}{SUFFIX}")

    def missing(self) -> int:
        """Bytes that are still to come."""
        if self.file.exists():
            return 0
        return max(0, self.size - self.partial.stat().st_size) if self.partial.exists() else self.size

    def finish(self, fetch: Callable[[BinaryIO, int], None], progress: Progress) -> None:
        """Have the rest fetched, and check the whole. Whoever asks for the same at the same time waits.

        Args:
            fetch: appends the rest to an open file, which holds so many bytes already. It may raise, and what
                it has written is kept. Where it cannot go on behind them it empties the file.

        Raises:
            BadWeights: what came is another file. Nothing of it is kept.
            OSError: the disk is full. What has come is kept.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.partial.with_suffix(".lock")):
            if self.file.exists():
                return
            found = ""
            for resumed in (self._begun(), False):
                with self.partial.open("ab") as out:
                    if out.tell() < self.size:
                        fetch(out, out.tell())
                found = file_sha256(self.partial, "Checking", progress)
                if found == self.sha256:
                    self.partial.replace(self.file)
                    with suppress(OSError):  # Windows keeps a lock that is held
                        self.partial.with_suffix(".lock").unlink()
                    return
                self.partial.unlink()
                if not resumed:  # else the first part may have been at fault, as after a crash of the machine
                    break
        raise BadWeights(
            f"{self.file.name} is not what it should be: its sha256 is {found}, not {self.sha256}",
            check="check whether a proxy or a mirror changes files",
        )

    def _begun(self) -> bool:
        """Whether something has come. What is longer than the file can be nothing of it."""
        if not self.partial.exists():
            return False
        if self.partial.stat().st_size > self.size:
            self.partial.unlink()
            return False
        return self.partial.stat().st_size > 0


def remove_partials(folder: Path, but: set[str]) -> None:
    """Remove what has come of files that nobody asks for any more.

    Args:
        but: the hashes of those that stay.
    """
    for partial in folder.glob(f"*{SUFFIX}"):
        if partial.name.removesuffix(SUFFIX) not in but:
            partial.unlink(missing_ok=True)
            partial.with_suffix(".lock").unlink(missing_ok=True)
