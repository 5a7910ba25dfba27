"""The whole verification of evidence, whichever hardware it is of."""

from __future__ import annotations

import hmac
from collections.abc import Collection
from dataclasses import dataclass, field

from shoal.errors import ShoalError
from shoal.models.untrusted.panics import is_panic
from shoal.trust.attestation.evidence import (
    AttestationRefused,
    Binding,
    Claims,
    Evidence,
    check_binding,
)
from shoal.trust.attestation.intel import verify_intel
from shoal.trust.attestation.measurements import Measurements
from shoal.trust.attestation.nitro import AWS_ROOTS, verify_nitro
from shoal.trust.attestation.snp import AMD_ROOTS, verify_snp


@dataclass(frozen=True, slots=True)
class Roots:
    """Whose word is believed: the makers', by default."""

    intel: bytes | None = None
    """A certificate, as DER; ``None`` for the one that the library has."""
    amd: Collection[str] = field(default=AMD_ROOTS)
    """SHA-256 of public keys."""
    aws: Collection[str] = field(default=AWS_ROOTS)


MAKERS = Roots()


@dataclass(frozen=True, slots=True)
class Verified:
    """What evidence has shown."""

    claims: Claims
    binding: Binding
    entry: str
    """The name on the operator's list."""
    since: float
    """When it was asked for, in seconds since the epoch."""

    @property
    def shown(self) -> str:
        """In few words."""
        return f"{self.claims.kind}: {self.entry} ({self.claims.tcb})"


def verify_evidence(
    evidence: Evidence, expected: Binding, allowed: Measurements, now: float, roots: Roots = MAKERS
) -> Verified:
    """Verify what a peer presents at the time ``now``, in seconds since the epoch.

    Args:
        expected: for whom and what it must have been made.
        allowed: the operator's list.

    Raises:
        AttestationRefused: it does not show what it should; has the reason.
        UsageError: a library that is needed for it is not here.
    """
    check_binding(evidence.binding, expected)
    claims = verify_quote(evidence, now, roots)
    if not hmac.compare_digest(claims.report_data, expected.report_data):
        raise AttestationRefused("report_data", "its hardware has signed something else than it says")
    return Verified(claims, expected, allowed.match(claims), now)


def verify_quote(evidence: Evidence, now: float, roots: Roots = MAKERS) -> Claims:
    """What the hardware has signed, whoever it was signed for. Raises as :func:`verify_evidence`."""
    try:
        return _verified(evidence, now, roots)
    except ShoalError:
        raise
    except BaseException as error:
        # What libraries raise over strangers' certificates is not listed anywhere, and parts of them are read
        # only when they are looked at; those in Rust may panic, which is no Exception.
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        told = f"its evidence cannot be read: {str(error)[:200]}"
        raise AttestationRefused("unreadable", told) from error


def _verified(evidence: Evidence, now: float, roots: Roots) -> Claims:
    match evidence.kind:
        case "snp":
            return verify_snp(evidence.quote, evidence.collateral, now, roots.amd)
        case "nitro":
            return verify_nitro(evidence.quote, now, roots.aws)
        case "tdx" | "sgx":
            return verify_intel(evidence.kind, evidence.quote, evidence.collateral, now, roots.intel)
