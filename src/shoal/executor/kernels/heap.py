"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable


def release_heap() -> None:
    """Give the heap's free pages back.

    glibc keeps what is freed, and seldom finds a place for the next tensor in it: loading a span tensor by
    tensor would take two to three times its size. Elsewhere this does nothing.
    """
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    found = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    return found or (lambda keep: None)
