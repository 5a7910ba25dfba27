"""What a caller has used and was not charged for yet."""

from __future__ import annotations

from dataclasses import dataclass, field

from shoal.gateway.access.keys import Caller
from shoal.gateway.database.once import WriteNumber, Writer


@dataclass(slots=True)
class Debt:
    """Of one caller. What was tried is tried again as it was, for it may be written; the rest adds up."""

    caller: Caller
    owed: int = 0
    """Tokens that nobody has tried to write."""
    settling: bool = False
    _writer: Writer = field(default_factory=Writer)
    _tried: tuple[WriteNumber, int] | None = None

    def due(self) -> tuple[WriteNumber, int] | None:
        """The next write and its tokens; ``None`` where nothing is owed."""
        if self._tried is None and self.owed:
            self._tried, self.owed = (self._writer.next(), self.owed), 0
        return self._tried

    def paid(self) -> None:
        """What was due is written."""
        self._tried = None
