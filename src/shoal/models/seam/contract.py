"""How a change of transformers is told: by what has changed, not by what fails later because of it."""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module

from shoal.errors import IncompatibleLibrary
from shoal.models import seam
from shoal.models.seam.versions import SUPPORTED, check_version, installed_version


class Changed(Exception):
    """Something that we rely on is not as it was."""


@contextmanager
def relied_on(what: str) -> Generator[None]:
    """Around the imports of ``what`` and what is expected of them.

    Raises:
        IncompatibleLibrary: this version is not supported, or an expectation is not met.
    """
    check_version()
    try:
        yield
    except (ImportError, AttributeError, Changed) as error:
        raise changed(what, str(error)) from error


def expect_members(owner: object, *names: str) -> None:
    """Expect that a class, an object or a module has ``names``.

    Raises:
        Changed: some are missing.
    """
    if missing := [name for name in names if not hasattr(owner, name)]:
        label = getattr(owner, "__name__", type(owner).__name__)
        raise Changed(f"{label} has no {', '.join(missing)}")


def expect_arguments(function: Callable[..., object], *names: str) -> None:
    """Expect that a function has arguments of these names.

    Raises:
        Changed: some are missing.
    """
    found = inspect.signature(function).parameters
    if missing := [name for name in names if name not in found]:
        raise Changed(f"{function.__qualname__} takes no {', '.join(missing)}, but {', '.join(found)}")


def changed(what: str, how: str) -> IncompatibleLibrary:
    """The error that tells of a version in the range that is not as it should be."""
    version = installed_version()
    return IncompatibleLibrary(
        f"transformers {version} does not fit, though Shoal supports {SUPPORTED}: {what}: {how[:500]}",
        check="reinstall the library, or install a supported version",
        next_command=f"pip install 'transformers{SUPPORTED},!={version}'",
    )


def check_everything() -> str:
    """Look at all that can be seen without running a model. Takes seconds.

    Returns:
        The version that is here.

    Raises:
        IncompatibleLibrary: it is not supported, or something that we rely on has changed.
    """
    version = check_version()
    for module in pkgutil.iter_modules(seam.__path__):
        import_module(f"{seam.__name__}.{module.name}")
    return version
