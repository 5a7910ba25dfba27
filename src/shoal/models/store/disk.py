"""A disk that is full, told as one: what needs room, where, how much, and what to do."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import DISK_FULL, OutOfResources, ShoalError

SAID = re.compile(rf"(?:\[Errno|os error) (?:{'|'.join(map(str, sorted(DISK_FULL)))})\b")
"""How Python and Rust say so in texts of programs and libraries that keep no ``errno``, in any language."""
ANOTHER = "set SHOAL_HOME to a larger disk"


def check_free(folder: Path, what: str, needed: int, *, instead: str = ANOTHER) -> None:
    """Refuse to begin what cannot be ended.

    Args:
        folder: where it is to be written; it need not be there yet.
        needed: bytes.
        instead: what to do, if not to free space.

    Raises:
        OutOfResources: less is free.
    """
    if _free(folder) < needed:
        raise _full(folder, what, needed, instead)


@contextmanager
def told_if_full(
    folder: Path, what: str, needed: Callable[[], int] = lambda: 0, *, instead: str = ANOTHER
) -> Generator[None]:
    """Tell an error that a full disk has caused as what it is, whichever library raised it.

    Args:
        folder: where is written.
        needed: says how many bytes were to be written in all; 0 where nobody knows.

    Raises:
        OutOfResources: the disk is full.
    """
    try:
        yield
    except OutOfResources:
        raise
    except Exception as error:
        # Of any kind: the hub's client, pip and converters wrap what the system said in errors of theirs.
        if is_full(error):
            raise _full(folder, what, needed(), instead) from error
        raise


def is_full(error: BaseException) -> bool:
    """Whether a full disk is what caused an error.

    Errors of ours are not searched for words of the system's: they quote what a model's files say.
    """
    return any(
        (isinstance(cause, OSError) and cause.errno in DISK_FULL)
        or (not isinstance(cause, ShoalError) and says_full(str(cause)))
        for cause in _causes(error)
    )


def says_full(text: str) -> bool:
    """Whether a program says in its output that the disk was full."""
    return SAID.search(text) is not None


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(16):  # a chain may lead back to itself
        if cause is None:
            return
        yield cause
        cause = cause.__cause__ or cause.__context__


def _full(folder: Path, what: str, needed: int, instead: str) -> OutOfResources:
    needs = f"needs {needed / 1e6:.0f} MB" if needed else "needs more"
    return OutOfResources(
        f"the disk of {folder} is full: {what} {needs}, {_free(folder) / 1e6:.0f} MB are free",
        check=f"free some space, or {instead}",
        next_command="shoal models list",
    )


def _free(folder: Path) -> int:
    """Bytes that are free where ``folder`` is, or is to be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free
