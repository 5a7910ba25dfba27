"""What a check of `shoal doctor` says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ok", "note", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of one check. A note works, but not as well as it could."""

    name: str
    verdict: Verdict
    detail: str
    fix: str = ""
