"""What this machine remembers of audits: what they cost so far, and who was found out. Pure.

It is this machine's own, and told to nobody: who was found out elsewhere is no fact here. Times are seconds
since the epoch. A clock that jumps forward forgives early, one that is set back does not punish for longer
than a new lie would.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from shoal.errors import UsageError
from shoal.trust.audit import AuditAccount
from shoal.types import PeerId

MAX_CONVICTIONS = 1024
"""Of more, the oldest are forgotten."""
MAX_RECORD = 1 << 20
"""Bytes of a record's file."""
FORGET_S = 30 * 86400.0
"""So long ago nothing counts any more."""


class Conviction(Struct, frozen=True):
    """A peer that computed something else than it should have."""

    peer: Annotated[str, Meta(min_length=1, max_length=128)]
    at: Annotated[float, Meta(ge=0, le=1e12)]
    digest: Annotated[str, Meta(max_length=128)] = ""
    """Of the model."""
    start: Annotated[int, Meta(ge=0, le=1 << 14)] = 0
    end: Annotated[int, Meta(ge=0, le=1 << 14)] = 0
    canary: bool = False
    """Whether it was found by a canary."""


CanaryResult = Literal["same", "cheat", "open", "failed"]
"""Every hop that was computed again did what it should; or one was found out; or neither is shown of some
hop; or the canary got no whole answer."""


class CanaryCounts(Struct, frozen=True):
    """How many canaries came to what."""

    same: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    cheat: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    open: Annotated[int, Meta(ge=0, le=1 << 53)] = 0
    failed: Annotated[int, Meta(ge=0, le=1 << 53)] = 0

    @property
    def sent(self) -> int:
        """All of them."""
        return self.same + self.cheat + self.open + self.failed

    def count(self, result: CanaryResult) -> CanaryCounts:
        """With one more."""
        return replace(self, **{result: getattr(self, result) + 1})


class AuditRecord(Struct, frozen=True):
    """All of it."""

    kind: Literal["shoal audits 1"] = "shoal audits 1"
    account: AuditAccount = AuditAccount()
    convictions: Annotated[tuple[Conviction, ...], Meta(max_length=MAX_CONVICTIONS)] = ()
    canaries: CanaryCounts = CanaryCounts()

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1)

    def with_account(self, account: AuditAccount) -> AuditRecord:
        """With another account."""
        return replace(self, account=account)

    def count_canary(self, result: CanaryResult) -> AuditRecord:
        """With one more canary that came to its end."""
        return replace(self, canaries=self.canaries.count(result))

    def convict(self, found: Conviction) -> AuditRecord:
        """With one more, the last one of its peer."""
        others = [one for one in self.convictions if one.peer != found.peer]
        return replace(self, convictions=(*others, found)[-MAX_CONVICTIONS:])

    def pardon(self, peer: str) -> AuditRecord:
        """Without what was found of a peer."""
        return replace(self, convictions=tuple(one for one in self.convictions if one.peer != peer))

    def ages(self, now: float) -> Iterable[tuple[PeerId, float]]:
        """Who was found out, and how long ago."""
        pairs = ((PeerId(one.peer), max(0.0, now - one.at)) for one in self.convictions)
        return [(peer, age) for peer, age in pairs if age < FORGET_S]


_record = msgspec.json.Decoder(AuditRecord)


def read_record(data: bytes, name: str) -> AuditRecord:
    """Read a record's file; an empty one is a new one.

    Raises:
        UsageError: it is none.
    """
    if not data:
        return AuditRecord()
    try:
        if len(data) > MAX_RECORD:
            raise ValueError(f"it has more than {MAX_RECORD} bytes")
        return _record.decode(data)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{name} is no record of audits: {error}",
            check="delete it: what audits have found is forgotten then, and nothing else",
        ) from error
