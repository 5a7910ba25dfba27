"""Reads a TOML file that a person wrote."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from shoal.errors import UsageError

MAX_FILE = 1 << 20
"""In bytes: a file of a person has a hundredth of it."""


def read_toml(path: Path) -> dict[str, Any] | None:
    """What a file says; ``None`` where there is none.

    Raises:
        UsageError: it cannot be read, is no TOML, or has more than :data:`MAX_FILE` bytes.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}",
            check="check that it is a file and that you have permission to read it",
        ) from error
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} has more than {MAX_FILE} bytes", check="check that it is the right file")
    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", check="correct the line that the message names"
        ) from error
