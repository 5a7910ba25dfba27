"""Chains of certificates up to a pinned root, for makers whose chains no library of theirs verifies."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning

from shoal.trust.attestation.evidence import AttestationRefused

_ReadT = TypeVar("_ReadT")


def key_hash(certificate: x509.Certificate) -> str:
    """The SHA-256 of a certificate's public key in hex: a root is known by it."""
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def read_certificate(data: bytes, name: str) -> x509.Certificate:
    """A certificate of DER. Raises AttestationRefused: it is none."""
    return _read(x509.load_der_x509_certificate, data, name)


def read_crl(data: bytes, name: str) -> x509.CertificateRevocationList:
    """A list of revoked certificates, of DER. Raises AttestationRefused: it is none."""
    return _read(x509.load_der_x509_crl, data, name)


def check_chain(chain: Sequence[x509.Certificate], now: datetime) -> float:
    """Verify that each certificate is issued by the next, all are valid, and the issuers may issue.

    Who calls this has pinned the last one.

    Returns:
        Until when all of them are valid, in seconds since the epoch.

    Raises:
        AttestationRefused: they are not.
    """
    for certificate in chain:
        _check_dates(certificate, now)
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        _check_authority(issuer)
        try:
            certificate.verify_directly_issued_by(issuer)
        except (InvalidSignature, ValueError, TypeError) as error:
            named = certificate.subject.rfc4514_string()[:100]
            raise AttestationRefused(
                "certificates", f"its certificate {named} is not its issuer's"
            ) from error
    return min(certificate.not_valid_after_utc.timestamp() for certificate in chain)


def _check_dates(certificate: x509.Certificate, now: datetime) -> None:
    """Raises AttestationRefused: a certificate is not valid yet, or not any more."""
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        named = certificate.subject.rfc4514_string()[:100]
        ends = f"{certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        raise AttestationRefused("expired", f"its certificate {named} is valid from {ends} alone")


def check_pinned(root: x509.Certificate, pinned: Collection[str], maker: str) -> None:
    """Raises AttestationRefused: a root's key is none of those that are known."""
    if key_hash(root) not in pinned:
        raise AttestationRefused("certificates", f"its certificates do not end in a root of {maker}")


def check_revoked(
    chain: Sequence[x509.Certificate],
    crl: x509.CertificateRevocationList,
    issuer: x509.Certificate,
    now: datetime,
) -> float:
    """Verify an issuer's list of revoked certificates, and that none of ``chain`` is on it.

    Returns:
        Until when the list holds, in seconds since the epoch.

    Raises:
        AttestationRefused: it is not the issuer's, has expired, or names one of them.
    """
    if crl.issuer != issuer.subject or not _signed_by(crl, issuer):
        raise AttestationRefused("certificates", "its list of revoked certificates is not the issuer's")
    ends = crl.next_update_utc
    if ends is None or not crl.last_update_utc <= now <= ends:
        raise AttestationRefused("expired", f"its list of revoked certificates held until {ends}")
    for certificate in chain:
        if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
            named = certificate.subject.rfc4514_string()[:100]
            raise AttestationRefused("revoked", f"its certificate {named} is revoked")
    return ends.timestamp()


def at(now: float) -> datetime:
    """A time in seconds since the epoch, as certificates have it."""
    return datetime.fromtimestamp(now, UTC)


def _signed_by(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.is_signature_valid(issuer.public_key())  # pyright: ignore[reportArgumentType]  checked there
    except (TypeError, ValueError):
        return False


def _check_authority(issuer: x509.Certificate) -> None:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise AttestationRefused("certificates", "one of its issuers may issue nothing") from error
    if not constraints.ca:
        raise AttestationRefused("certificates", "one of its issuers may issue nothing")


def _read(load: Callable[[bytes], _ReadT], data: bytes, name: str) -> _ReadT:
    try:
        with warnings.catch_warnings():
            # AMD's certificates of chips have the serial number 0, which the library wants to refuse one day.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return load(data)
    except (ValueError, TypeError) as error:
        raise AttestationRefused("unreadable", f"its {name} cannot be read: {error}") from error
