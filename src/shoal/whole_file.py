"""Files that are on the disk whole or not at all, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import NamedTemporaryFile


def write_whole(path: Path, data: bytes, *, replace: bool) -> None:
    """Write a file for its owner alone: it is mode 0600 from the first byte.

    On return it is there after a loss of power, too.

    Args:
        replace: whether it takes the place of one that is there.

    Raises:
        FileExistsError: one is there, and is not to be replaced: of two processes that make one, one wins.
        OSError: it cannot be written.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".new", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(data)
            file.flush()
            # Before it has its name: after a crash there is the old file or the whole new one.
            os.fsync(file.fileno())
            if replace:
                temporary.replace(path)
            else:
                path.hardlink_to(temporary)
        finally:
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """The name of a file stays only once its folder was written."""
    if os.name != "posix":
        return  # folders cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
