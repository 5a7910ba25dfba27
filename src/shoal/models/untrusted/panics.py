"""Panics of Rust, which Python sees as exceptions that are no :class:`Exception`, and that end a process."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from shoal.errors import BadWeights


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust has met what it had not thought of."""
    return type(error).__module__ == "pyo3_runtime"


@contextmanager
def as_errors(of: Path) -> Generator[None]:
    """What runs inside may panic over what a model's files say.

    Raises:
        BadWeights: it did.
    """
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise BadWeights(
            f"{of}: a library fails on its tokenizer ({str(error)[:200]})",
            check="check that the model comes from a source you trust",
        ) from error
