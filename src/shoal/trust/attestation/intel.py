"""Quotes of Intel TDX and SGX. dcap-qvl verifies them: signatures, chains, revocation, versions.

What is refused by name is looked at here before or after it. A quote's claims come from the library alone,
once all signatures hold.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from cryptography import x509

from shoal.errors import UsageError
from shoal.trust.attestation.evidence import AttestationRefused, Claims, RefusalReason
from shoal.types import TeeKind

SGX_DEBUG = 0x02
SGX_INITIALISED = 0x01

_NAMED: tuple[tuple[str, RefusalReason], ...] = (
    ("No matching TCB level found", "outdated"),
    ("Debug mode is enabled", "debug"),
    ("TCB status is invalid: Revoked", "revoked"),
    ("Failed to verify certificate chain", "certificates"),
    ("Failed to parse root CA CRL", "certificates"),
)
"""The library has one type for all its errors. What has a text that is not here is refused all the same, as a
signature that does not hold."""


def verify_intel(kind: TeeKind, quote: bytes, collateral: bytes, now: float, root: bytes | None) -> Claims:
    """Verify a quote at the time ``now``, in seconds since the epoch.

    Args:
        root: the certificate that all chains end in, as DER; Intel's where it is ``None``.

    Raises:
        AttestationRefused: it does not hold.
        UsageError: the library is not here.
    """
    library = intel_library()
    try:
        material = library.QuoteCollateralV3.from_json(collateral.decode("utf-8"))
        expires = _expires(json.loads(collateral))
        verifier, at = library.QuoteVerifier(root), int(now)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise AttestationRefused("unreadable", f"its collateral cannot be read: {error}") from error
    if expires <= now:
        when = datetime.fromtimestamp(expires, UTC)
        raise AttestationRefused(
            "expired", f"what it is verified with has expired: {when:%Y-%m-%d %H:%M} UTC"
        )
    try:
        policy = library.QuotePolicy.claims_only(at)
        claims: dict[str, Any] = json.loads(
            verifier.verify_with_policy(quote, material, at, policy).to_json()
        )
    except ValueError as error:
        if _lists_revoked(library, quote, material):
            raise AttestationRefused("revoked", "its machine's certificate is revoked") from error
        raise AttestationRefused(_reason(str(error)), f"its quote does not hold: {error}") from error
    return _claims(kind, claims, expires)


def _claims(kind: TeeKind, claims: dict[str, Any], expires: float) -> Claims:
    try:
        name, report = next(iter(claims["report"].items()))
        found: TeeKind = "sgx" if name == "SgxEnclave" else "tdx"
        if found != kind:
            raise AttestationRefused("unreadable", f"it is presented as {kind} and is of {found}")
        report = report.get("base", report)
        _check_debug(kind, report)
        tcb = claims["tcb"]
        return Claims(
            kind,
            {name: report[name] for name in _MEASURED[kind]},
            bytes.fromhex(report["report_data"]),
            tcb["status"],
            {},
            tuple(tcb["advisory_ids"]),
            min(expires, claims["earliest_expiration_date"], claims["qe_iden_earliest_expiration_date"]),
        )
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise AttestationRefused("unreadable", f"its quote says something unknown: {error!r}") from error


_MEASURED = {"tdx": ("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3"), "sgx": ("mr_enclave", "mr_signer")}


def _check_debug(kind: TeeKind, report: dict[str, Any]) -> None:
    attributes = bytes.fromhex(report["td_attributes" if kind == "tdx" else "attributes"])
    # Of a TD each of the first eight bits puts it under debug, or is reserved for that.
    debug = attributes[0] if kind == "tdx" else attributes[0] & SGX_DEBUG
    if debug:
        raise AttestationRefused("debug", "its machine is under debug: whoever owns it can read all of it")
    if kind == "sgx" and not attributes[0] & SGX_INITIALISED:
        raise AttestationRefused("unreadable", "its enclave was never initialised")


def _expires(collateral: dict[str, Any]) -> float:
    """When the first of what it is verified with ends to hold."""
    signed = [json.loads(collateral[name])["nextUpdate"] for name in ("tcb_info", "qe_identity")]
    ends = [datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() for text in signed]
    for name in ("root_ca_crl", "pck_crl"):
        crl = x509.load_der_x509_crl(bytes.fromhex(collateral[name]))
        if crl.next_update_utc is None:
            raise ValueError(f"{name} does not say until when it holds")
        ends.append(crl.next_update_utc.timestamp())
    return min(ends)


def _lists_revoked(library: Any, quote: bytes, material: Any) -> bool:
    """Whether a refused quote is of a machine on the list of revoked ones: the library does not say."""
    try:
        chain = library.Quote.parse(quote).cert_chain_pem_bytes() or b""
        crl = x509.load_der_x509_crl(material.pck_crl)
        leaf = x509.load_pem_x509_certificates(chain)[0]
        return crl.get_revoked_certificate_by_serial_number(leaf.serial_number) is not None
    except (ValueError, IndexError):
        return False


def _reason(text: str) -> RefusalReason:
    for part, reason in _NAMED:
        if part in text:
            return reason
    return "signature"


def intel_library() -> Any:
    """dcap-qvl. Raises UsageError: it is not here."""
    try:
        import dcap_qvl  # noqa: PLC0415  an extra, which only this needs
    except ImportError as error:
        raise UsageError(
            "quotes of Intel are verified by dcap-qvl, which is not here",
            check="install it, in the environment that shoal runs in",
            next_command="pip install 'shoal[attest]'",
        ) from error
    return dcap_qvl
