"""Where the time of one answer went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from shoal.client.speculation.counts import SpeculationCounts
from shoal.wire.messages import HopTime


@dataclass(slots=True)
class Timing:
    """Where an answer's time went, in seconds on this machine's clock."""

    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    tokens: int = 0
    reused: int = 0
    """Tokens of the prompt whose KV the session had already."""
    hops: dict[int, list[HopTime]] = field(default_factory=dict)
    """Decode steps by hop; the prefill is not among them."""
    speculation: SpeculationCounts = field(default_factory=SpeculationCounts)
    """What was guessed ahead."""

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.first_token - self.started

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: tokens after the first, over the time since it."""
        elapsed = self.last_token - self.first_token
        return (self.tokens - 1) / elapsed if self.tokens > 1 and elapsed > 0 else 0.0

    def note(self, now: float, times: Sequence[HopTime]) -> None:
        """Count one token that came at ``now``."""
        self.tokens += 1
        self.last_token = now
        if self.tokens == 1:
            self.first_token = now
            return
        for time in times:
            self.hops.setdefault(time.hop, []).append(time)
