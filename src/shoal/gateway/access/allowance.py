"""What a caller may still ask for, by its key's limits. Pure: times are seconds of one clock."""

from __future__ import annotations

from dataclasses import dataclass

from shoal.gateway.access.keys import KeyLimits
from shoal.gateway.errors import LimitReached

RETRY_S = 2.0
"""When one that was sent away may come back."""


class ConcurrencyReached(LimitReached):
    """The caller has as many requests at once as it may have."""


@dataclass(slots=True)
class Bucket:
    """An allowance that fills up evenly over a minute (a token bucket)."""

    per_minute: float
    level: float
    at: float

    @classmethod
    def full(cls, per_minute: float, now: float) -> Bucket:
        return cls(per_minute, per_minute, now)

    def level_at(self, now: float) -> float:
        """What is left."""
        self._fill(now)
        return self.level

    def wait_s(self, now: float) -> float:
        """Seconds until something is left; 0 when it is."""
        return 0.0 if self.level_at(now) >= 1 else (1 - self.level) * 60 / self.per_minute

    def take(self, amount: float, now: float) -> None:
        """Use so much. What is only known afterwards may bring the level below nothing."""
        self._fill(now)
        self.level -= amount

    def _fill(self, now: float) -> None:
        past_s = max(0.0, now - self.at)  # a server's clock may be set back
        self.level = min(self.per_minute, self.level + past_s * self.per_minute / 60)
        self.at = now


@dataclass(slots=True)
class Allowance:
    """What is left of one caller's limits."""

    requests: Bucket | None
    """``None`` is without limit."""
    tokens: Bucket | None
    """Of prompts and answers together; may be below nothing."""

    @classmethod
    def full(cls, limits: KeyLimits, now: float) -> Allowance:
        return cls(
            Bucket.full(limits.requests_per_minute, now) if limits.requests_per_minute else None,
            Bucket.full(limits.tokens_per_minute, now) if limits.tokens_per_minute else None,
        )

    def take_request(self, limits: KeyLimits, open_now: int, now: float) -> None:
        """Count one more request.

        Args:
            open_now: requests that the caller has going.

        Raises:
            LimitReached: the caller is at one of its limits; nothing is counted.
        """
        if limits.concurrency and open_now >= limits.concurrency:
            raise ConcurrencyReached(
                f"this key may have {limits.concurrency} requests at once", retry_after_s=RETRY_S
            )
        for bucket, name in ((self.requests, "requests"), (self.tokens, "tokens")):
            if bucket is not None and (wait_s := bucket.wait_s(now)):
                raise LimitReached(
                    f"this key has used its {bucket.per_minute:.0f} {name} a minute", retry_after_s=wait_s
                )
        if self.requests is not None:
            self.requests.take(1, now)
