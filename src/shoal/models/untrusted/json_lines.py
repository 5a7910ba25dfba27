"""Files that have a JSON object on each line: bounded, and each line known by its number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from shoal.errors import UsageError
from shoal.models.untrusted.bounded_json import parse

MAX_LINE = 8 << 20
MAX_VALUES = 100_000


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1. Of one that is longer than 8 MiB comes so much
    that :func:`line_object` refuses it, and whoever goes on then has the next.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            number = 0
            while raw := stream.readline(MAX_LINE + 1):
                number += 1
                if len(raw) > MAX_LINE or raw.strip():
                    yield number, raw
                while raw and not raw.endswith(b"\n"):
                    raw = stream.readline(MAX_LINE)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}", check="check the path") from error


def line_object(raw: bytes) -> dict[str, Any]:
    """The object on a line. Raises UsageError: there is none, or the line is too long; says why."""
    if len(raw) > MAX_LINE:
        raise UsageError(f"it is longer than {MAX_LINE >> 20} MiB")
    try:
        value = parse(raw, values=MAX_VALUES)
    except ValueError as error:
        raise UsageError(f"it is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise UsageError("it is no JSON object")
    return cast("dict[str, Any]", value)
