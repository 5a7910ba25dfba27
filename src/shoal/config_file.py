"""Reads ``config.toml``; what its values may be, :mod:`shoal.option_values` knows."""

from __future__ import annotations

import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from shoal.errors import UsageError


def read_config_file(path: Path, options: Collection[str]) -> dict[str, Any]:
    """What the file sets; nothing where there is none.

    Args:
        options: the names that it may have.

    Raises:
        UsageError: it cannot be read, is no TOML, or has another name.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(
            f"{path}: {error.strerror}",
            check="check that it is a file and that you have permission to read it",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", check="correct the line that the message names"
        ) from error
    unknown = sorted(set(values) - set(options))
    if unknown:
        raise UsageError(
            f"{path} has an unknown option {unknown[0]!r}", check=f"use one of: {', '.join(options)}"
        )
    return values
