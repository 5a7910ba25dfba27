"""How updates travel: as they are, with a byte for each number, or as DeMo's coefficients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal.errors import UsageError
from shoal.training.federated.demo.coefficients import coefficient_bytes
from shoal.training.federated.int8 import int8_bytes

Compression = Literal["none", "int8", "demo"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "int8", "demo")


def compression(name: str) -> Compression:
    """A compression by its name. Raises UsageError: there is none."""
    for known in COMPRESSIONS:
        if known == name:
            return known
    raise UsageError(f"there is no compression {name!r}", check=f"name one of: {', '.join(COMPRESSIONS)}")


@dataclass(frozen=True, slots=True)
class UpdateForm:
    """What parts of updates look like in a run.

    Args:
        size: elements of the whole vector.
        secret: whether updates travel as integers of 8 bytes.
        kept: DeMo's coefficients of each chunk.
    """

    size: int
    compress: Compression = "none"
    secret: bool = False
    kept: int = 0

    def part_bytes(self, kind: Literal["update", "mean"], elements: int) -> int:
        """Of a part of so many elements. By DeMo each member sends all of its coefficients to each, and no
        mean of them."""
        match self.compress:
            case "demo":
                return coefficient_bytes(self.size, self.kept) if kind == "update" else 0
            case "int8":
                return int8_bytes(elements)
            case "none":
                return elements * (8 if self.secret and kind == "update" else 4)
