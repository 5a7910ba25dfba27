"""JSON that a stranger wrote, looked over before it is parsed: that takes forty times its size in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 64
"""Objects and lists in one another. Honest files of a model have up to ten. Python's own limit is about
1,000, and that of what copies or compares a value later is lower."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""A string, or what begins as one and never ends: so each byte is looked at once."""
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse(raw: bytes, *, values: int, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value that is written in UTF-8, or in UTF-16 or 32 with a byte order mark.

    Args:
        values: how many values there may be, those in lists and objects included.
        pairs: makes an object, as in ``json.loads``.

    Raises:
        ValueError: it is not JSON, or has too many values, or too many in one another.
    """
    if raw.count(b",") + raw.count(b"[") + raw.count(b"{") > values:
        raise ValueError(f"it has more than {values} values")
    text = raw.decode(json.detect_encoding(raw), "surrogatepass")
    depth = deepest = 0
    for byte in STRING.sub(b"", text.encode("utf-8", "surrogatepass")).translate(None, NO_BRACKETS):
        depth += 1 if byte in b"[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise ValueError(f"it is nested {deepest} deep, and {MAX_DEPTH} is the most")
    return json.loads(text, object_pairs_hook=pairs)
