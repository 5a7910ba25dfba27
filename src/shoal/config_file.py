"""In which folders everything lies, and what ``config.toml`` has. What its values may be,
:mod:`shoal.option_values` knows.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import platformdirs

from shoal.errors import UsageError
from shoal.toml_file import read_toml
from shoal.types import Paths


def default_paths(environ: Mapping[str, str]) -> Paths:
    """The platform's folders, or one folder for all when ``SHOAL_HOME`` is set."""
    home = environ.get("SHOAL_HOME")
    if home:
        root = Path(home).expanduser()
        return Paths(root, root, root / "cache")
    return Paths(
        Path(platformdirs.user_config_dir("shoal", appauthor=False)),
        Path(platformdirs.user_data_dir("shoal", appauthor=False)),
        Path(platformdirs.user_cache_dir("shoal", appauthor=False)),
    )


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
