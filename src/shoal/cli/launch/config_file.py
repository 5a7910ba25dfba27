"""A configuration file of another program: written after asking, and never over one that is there unasked."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from shoal.errors import OutOfResources, UsageError


class FileState(Enum):
    """What a file is beside what it should be."""

    MISSING = "missing"
    SAME = "same"
    DIFFERENT = "different"


def state_of(path: Path, text: str) -> FileState:
    """Look at the file. Raises UsageError: it cannot be read."""
    try:
        found = path.read_text("utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return FileState.MISSING
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}", check="look at the file") from error
    return FileState.SAME if found == text else FileState.DIFFERENT


def write(path: Path, text: str) -> Path | None:
    """Write the file for its owner alone; one that was there is kept beside it, and returned.

    Raises:
        OutOfResources: it cannot be written; what was there is as it was.
    """
    kept = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.exists():
            kept = _free(path)
            path.rename(kept)
        path.touch(mode=0o600, exist_ok=False)
        path.write_text(text, "utf-8")
    except OSError as error:
        raise OutOfResources(
            f"{path}: {error.strerror}{_put_back(path, kept)}",
            check="check that there is free disk space and that the folder is yours",
        ) from error
    return kept


def _put_back(path: Path, kept: Path | None) -> str:
    """Undo what was done to the old file, or say where it is."""
    if kept is None or not kept.exists():
        return ""
    try:
        kept.replace(path)
    except OSError as error:
        return f"; the old file is {kept}, as it could not be put back: {error.strerror}"
    return "; the old file is there again"


def _free(path: Path) -> Path:
    """A name beside ``path`` that no file has."""
    number = 1
    while (kept := path.with_name(f"{path.name}.old{number}")).exists():
        number += 1
    return kept
