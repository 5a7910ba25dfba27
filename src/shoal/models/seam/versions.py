"""Which transformers is here, and which are supported: those in which the exactness tests have passed."""

from __future__ import annotations

import re
import sys
from importlib import metadata

from shoal.errors import IncompatibleLibrary

OLDEST = (5, 20)
BELOW = (5, 25)
"""The first minor version that is not supported. `pyproject.toml` says the same."""
SUPPORTED = f">={OLDEST[0]}.{OLDEST[1]},<{BELOW[0]}.{BELOW[1]}"


def installed_version() -> str:
    """The version that is imported or, without importing it, that would be.

    Raises:
        IncompatibleLibrary: there is none.
    """
    if loaded := sys.modules.get("transformers"):
        return str(loaded.__version__)
    try:
        return metadata.version("transformers")
    except metadata.PackageNotFoundError as error:
        raise IncompatibleLibrary(
            f"transformers is not installed here; Shoal needs {SUPPORTED}",
            check=f"check that {sys.executable} is the Python you want to use",
            next_command=f"pip install 'transformers{SUPPORTED}'",
        ) from error


def check_version() -> str:
    """The version that is here.

    Raises:
        IncompatibleLibrary: there is none, or it is not supported.
    """
    version = installed_version()
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not OLDEST <= (int(numbers[1]), int(numbers[2])) < BELOW:
        raise IncompatibleLibrary(
            f"transformers {version} is installed, and Shoal supports {SUPPORTED}",
            check=f"check the environment of {sys.executable}",
            next_command=f"pip install 'transformers{SUPPORTED}'",
        )
    return version
