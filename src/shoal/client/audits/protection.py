"""How well an answer is protected from hops that compute something else: what was asked for, and what came.

``fast``: nobody checks anything. ``audited``: all hops sign the answer, the signatures are checked, and by
chance, within a budget, a hop is computed again. ``consensus``: other peers compute all of it too, and what
all of them have signed is compared. ``proved``: all sign, and a block drawn by chance is proved to be that of
the model's weights, as far as its integer products go. ``attested``: only hops take part that have shown on
which machine and with which software they run (:mod:`shoal.client.attestation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from shoal.client.ring.hop import RouteHop
from shoal.trust.audit import AuditVerdict
from shoal.trust.fingerprint import FingerprintDistance
from shoal.types import ProtectionLevel, Span

PROVED = "proofs are sound, not zero-knowledge, and of linear layers only"


@dataclass(frozen=True, slots=True)
class AuditResult:
    """What came of computing one hop again, or of having it prove one of its blocks."""

    hop: int
    peer: str
    span: Span
    tokens: int
    """Rows that were computed again, from the first on."""
    verdict: AuditVerdict
    by: tuple[str, ...]
    """The auditors: peers, or this machine."""
    what: str
    """In a sentence."""
    residual: float | None = None
    """Where bits are no promise: how far its rows are from an auditor's, relative to their norm."""
    fingerprint: FingerprintDistance | None = None
    """The same by TOPLOC's fingerprints (:mod:`shoal.trust.fingerprint`)."""
    replica: int = 0
    """Of which replica the hop is; 0: of those that gave the answer."""
    block: int | None = None
    """The block that it was to prove; ``None``: it was computed again."""

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "hop": self.hop,
            "peer": self.peer,
            "start": self.span.start,
            "end": self.span.end,
            "tokens": self.tokens,
            "verdict": self.verdict,
            "by": list(self.by),
            "what": self.what,
            "residual": self.residual,
            "fingerprint": None if self.fingerprint is None else asdict(self.fingerprint),
            "replica": self.replica,
            "block": self.block,
        }


@dataclass(frozen=True, slots=True)
class Protection:
    """What an answer's protection came to."""

    asked: ProtectionLevel
    level: ProtectionLevel
    """What it has: less than was asked for where that could not be had, or where something was found."""
    signed: tuple[str, ...] = ()
    """The peers whose receipts hold."""
    audits: tuple[AuditResult, ...] = ()
    """Empty for most answers, as the budget allows few."""
    share: float = 0.0
    """Of the compute of all answers so far, what audits took."""
    budget: float = 0.0
    faults: tuple[str, ...] = field(default=())
    """What was found, or why it has less than was asked for, in sentences."""
    attested: tuple[tuple[str, str], ...] = ()
    """The peers that have shown what they run on, each with that."""
    replicas: tuple[tuple[str, ...], ...] = ()
    """The peers that have computed it, by replica and hop; the first are those that gave it."""
    extra: float = 0.0
    """What replicas and third parties have computed, relative to the answer's own rows."""

    @property
    def cheats(self) -> tuple[AuditResult, ...]:
        """The audits that found a hop out that gave the answer."""
        return tuple(audit for audit in self.audits if audit.verdict == "cheat" and not audit.replica)

    def shown(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "asked": self.asked,
            "level": self.level,
            "signed_by": list(self.signed),
            "audits": [audit.shown() for audit in self.audits],
            "audit_share": round(self.share, 4),
            "audit_budget": self.budget,
            "faults": list(self.faults),
            "replicas": [list(peers) for peers in self.replicas],
            "replica_compute": round(self.extra, 2),
            "attested": [{"peer": peer, "shown": shown} for peer, shown in self.attested],
        }

    @property
    def said(self) -> list[str]:
        """For people."""
        if self.asked == self.level == "fast":
            return []
        if self.asked == "attested" or self.attested:
            machines = sorted({shown for _, shown in self.attested})
            return [f"protection: {self.level}; {'; '.join(machines)}", *self.faults]
        if self.asked == "consensus":
            head = f"protection: {self.level}; {max(1, len(self.replicas))} replicas of each hop"
            head += f", for {self.extra:.1f} times its compute more"
            return [head, *(audit.what for audit in self.audits), *self.faults]
        hops = "1 hop" if len(self.signed) == 1 else f"{len(self.signed)} hops"
        if self.asked == "proved":
            head = f"protection: {self.level}; signed by {hops}; {PROVED}"
            return [head, *(audit.what for audit in self.audits), *self.faults]
        spent = f"audits took {self.share:.1%} of the compute so far, of {self.budget:.1%} allowed"
        drawn = "" if self.audits else ", none was drawn for an audit this time"
        head = f"protection: {self.level}; signed by {hops}{drawn}; {spent}"
        return [head, *(audit.what for audit in self.audits), *self.faults]


FAST = Protection("fast", "fast")
"""Of an answer for which nothing else was asked."""


def attested_protection(asked: ProtectionLevel, route: Sequence[RouteHop]) -> Protection:
    """That of an answer for which all hops of ``route`` were to show what they run on."""
    shown = tuple((hop.address.peer, hop.attested) for hop in route if hop.attested)
    silent = [str(hop) for hop in route if not hop.attested]
    faults = tuple(f"{hop} has not shown what it runs on" for hop in silent)
    return Protection(asked, "fast" if silent else "attested", attested=shown, faults=faults)
