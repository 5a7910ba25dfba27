"""Reads ``config.toml``; what its values may be, :mod:`shoal.option_values` knows."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from shoal.errors import UsageError
from shoal.toml_file import read_toml


def read_config_file(path: Path, options: Collection[str]) -> dict[str, Any]:
    """What the file sets; nothing where there is none.

    Args:
        options: the names that it may have.

    Raises:
        UsageError: it cannot be read, is no TOML, or has another name.
    """
    values = read_toml(path) or {}
    unknown = sorted(set(values) - set(options))
    if unknown:
        raise UsageError(
            f"{path} has an unknown option {unknown[0]!r}", check=f"use one of: {', '.join(options)}"
        )
    return values
