"""What every nursery and every wait of ours needs."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import trio


def seconds_left(until: float) -> float:
    """Seconds until a moment on trio's clock; 0 once it is past, as no wait can be shorter."""
    return max(0.0, until - trio.current_time())


@contextmanager
def one_error() -> Generator[None]:
    """Let one error leave as itself, however many nurseries it passed through.

    A nursery raises groups. Where one task failed and the others were cancelled for it, a caller wants to
    write ``except NoCoverage``; a group of several errors stays a group.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        leaves = list(_leaves(group))
        errors = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)] or leaves[:1]
        if len({id(error) for error in errors}) != 1:
            raise
        raise errors[0] from errors[0].__cause__


@contextmanager
def ends_alone(log: logging.Logger, what: str) -> Generator[None]:
    """Let an error that nobody foresaw end what one peer has caused, and not all else in the nursery.

    For tasks that a peer can have us begin. What its words can lead to is told by the errors that they catch;
    what comes here is a fault of ours, and is logged as one.
    """
    try:
        yield
    except Exception:
        log.exception("%s failed", what)


def _leaves(error: BaseException) -> Generator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
