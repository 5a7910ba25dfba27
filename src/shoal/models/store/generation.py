"""What a model's makers say of generating with it: how to sample, and what ends an answer."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from shoal.models.checkpoint.checkpoint import CONFIG
from shoal.models.checkpoint.json_file import read_object
from shoal.models.store.local_model import SamplingDefaults

log = logging.getLogger(__name__)

FILE = "generation_config.json"
BOUNDS: Mapping[str, tuple[float, float]] = {
    "temperature": (0, 2),
    "top_p": (0.01, 1),
    "top_k": (0, 1 << 24),
    "min_p": (0, 1),
    "repetition_penalty": (0.5, 2),
}
"""What a recommendation may be. Beyond, an answer is noise, and the file was not made for this."""


def read_generation_config(folder: Path) -> dict[str, Any]:
    """A folder's generation config; empty where it has none. Raises as ``read_object``."""
    path = folder / FILE
    return read_object(path, CONFIG) if path.is_file() else {}


def sampling_defaults(generation: Mapping[str, Any]) -> SamplingDefaults:
    """How to sample by a generation config. Values that cannot be meant are left out, and logged."""
    found: dict[str, Any] = {}
    for name, (least, most) in BOUNDS.items():
        value: object = generation.get(name)
        if value is None:
            continue
        number = _number(value)
        if number is None or not least <= number <= most:
            log.warning(
                "%s: %s is %.40r, which is ignored: it is between %g and %g", FILE, name, value, least, most
            )
            continue
        found[name] = int(number) if name == "top_k" else number
    if generation.get("do_sample") is False:
        penalty = found.get("repetition_penalty")
        return SamplingDefaults(temperature=0.0, repetition_penalty=penalty)
    return SamplingDefaults(**found)


def token_ids(value: object, vocab_size: int) -> frozenset[int]:
    """The token ids that a config means, which may write them as numbers, as text, or as a list of both."""
    if isinstance(value, list):
        return frozenset[int]().union(*(token_ids(item, vocab_size) for item in cast("list[object]", value)))
    number = _number(value)
    if value is None or (number is not None and number.is_integer() and 0 <= number < vocab_size):
        return frozenset() if number is None else frozenset({int(number)})
    log.warning("%.40r is no token that ends an answer: the vocabulary has %d", value, vocab_size)
    return frozenset()


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None
