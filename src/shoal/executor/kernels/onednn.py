"""Large products of bfloat16 by oneDNN, which comes with torch: for CPUs that multiply it in hardware.

There oneDNN is ahead of our kernel from a few dozen rows on. Torch takes seconds to import, so that is done
on a thread of its own when the first such product is asked for; until it is there, our kernel computes.
"""

from __future__ import annotations

import ctypes
import functools
import importlib
import logging
import math
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from shoal.executor.kernels.structs import PRODUCT

log = logging.getLogger(__name__)


@functools.cache
def _torch() -> Future[Any]:
    """Torch, once it is imported."""
    thread = ThreadPoolExecutor(1, "shoal-onednn")
    coming = thread.submit(importlib.import_module, "torch")
    thread.shutdown(wait=False)
    return coming


def _view(torch: Any, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
    """Memory that the kernels own, as a tensor; good for as long as they keep it."""
    buffer = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return torch.frombuffer(buffer, dtype=dtype).view(shape)


@PRODUCT
def product(layer: Any, x: int, m: int, out: int) -> int:
    """A large product of bf16: 1, or 0 when it could not, as ctypes says for an escaped error."""
    if not (coming := _torch()).done():
        return 0
    rows, cols = int(layer.contents.rows), int(layer.contents.cols)
    try:
        torch = coming.result()
        weights = _view(torch, layer.contents.weights, (rows, cols), torch.bfloat16)
        given = _view(torch, x, (m, cols), torch.float32).to(torch.bfloat16)
        _view(torch, out, (m, rows), torch.float32).copy_(torch.nn.functional.linear(given, weights))
    except (RuntimeError, MemoryError, ImportError):
        log.exception("oneDNN could not multiply: our own kernel does")
        return 0
    return 1
