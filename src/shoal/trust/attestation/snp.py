"""Reports of AMD SEV-SNP, after its ABI specification (AMD 56860) and the one of its keys (AMD 57230).

The report is signed by a key of the chip (VCEK), whose certificate names the chip and the versions that the
key was made for. It is issued by AMD's SEV key (ASK), and that by AMD's root (ARK), which also signs the list
of those that are revoked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils
from msgspec import Meta, Struct

from shoal.trust.attestation.chains import (
    at,
    check_chain,
    check_pinned,
    check_revoked,
    read_certificate,
    read_crl,
)
from shoal.trust.attestation.evidence import AttestationRefused, Claims

AMD_ROOTS = frozenset(
    {
        "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",  # ARK-Milan
        "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",  # ARK-Genoa
        "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",  # ARK-Turin
    }
)
"""SHA-256 of their public keys."""

REPORT = 1184
SIGNED = 0x2A0
ECDSA_P384 = 1
VERSIONS = range(2, 6)
POLICY_DEBUG = 1 << 19
POLICY_MIGRATES = 1 << 18
MASKED_CHIP = 1 << 1
VCEK = 0
SCALAR = 48

_OID = "1.3.6.1.4.1.3704.1"
PRODUCT_OID = f"{_OID}.2"
CHIP_OID = f"{_OID}.4"
VERSION_OIDS = {
    "boot_loader": f"{_OID}.3.1",
    "tee": f"{_OID}.3.2",
    "snp": f"{_OID}.3.3",
    "microcode": f"{_OID}.3.8",
}
FMC_OID = f"{_OID}.3.9"
_PLACES = {"boot_loader": 0, "tee": 1, "snp": 6, "microcode": 7}
_TURIN_PLACES = {"fmc": 0, "boot_loader": 1, "tee": 2, "snp": 3, "microcode": 7}
"""Which byte of the eight is the version of what."""


class SnpCollateral(Struct, frozen=True, array_like=True):
    """AMD's certificates for a report, as DER."""

    vcek: Annotated[bytes, Meta(max_length=8192)]
    ask: Annotated[bytes, Meta(max_length=8192)]
    ark: Annotated[bytes, Meta(max_length=8192)]
    crl: Annotated[bytes, Meta(max_length=1 << 16)]

    def encoded(self) -> bytes:
        """As it travels."""
        return msgspec.msgpack.encode(self)


_collateral = msgspec.msgpack.Decoder(SnpCollateral)


@dataclass(frozen=True, slots=True)
class SnpReport:
    """The fields of a report that something is made of."""

    policy: int
    level: int
    """The privilege level that asked; 0 is the highest."""
    key: int
    """Which kind of key has signed."""
    masked: bool
    report_data: bytes
    measurement: bytes
    host_data: bytes
    reported: bytes
    """The versions that the signing key was made for."""
    chip: bytes


def read_report(quote: bytes) -> SnpReport:
    """Read a report, of which nothing is verified yet.

    Raises:
        AttestationRefused: it is none.
    """
    if len(quote) != REPORT:
        raise AttestationRefused("unreadable", f"its report has {len(quote)} bytes, not {REPORT}")
    version, algorithm = _number(quote, 0, 4), _number(quote, 0x34, 4)
    if version not in VERSIONS or algorithm != ECDSA_P384:
        raise AttestationRefused("unreadable", f"its report has the version {version}, signed by {algorithm}")
    flags = _number(quote, 0x48, 4)
    return SnpReport(
        policy=_number(quote, 8, 8),
        level=_number(quote, 0x30, 4),
        key=flags >> 2 & 7,
        masked=bool(flags & MASKED_CHIP),
        report_data=quote[0x50:0x90],
        measurement=quote[0x90:0xC0],
        host_data=quote[0xC0:0xE0],
        reported=quote[0x180:0x188],
        chip=quote[0x1A0:0x1E0],
    )


def verify_snp(quote: bytes, collateral: bytes, now: float, roots: Collection[str] = AMD_ROOTS) -> Claims:
    """Verify a report at the time ``now``, in seconds since the epoch.

    Args:
        roots: the SHA-256 of the public keys of the roots that are believed.

    Raises:
        AttestationRefused: it does not hold.
    """
    report = read_report(quote)
    try:
        given = _collateral.decode(collateral)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AttestationRefused("unreadable", f"its certificates cannot be read: {error}") from error
    if report.key != VCEK or report.masked:
        raise AttestationRefused("certificates", "its report is not signed by the key of a chip (VCEK)")
    names = ("VCEK", "ASK", "ARK")
    chain = [
        read_certificate(data, n) for data, n in zip((given.vcek, given.ask, given.ark), names, strict=True)
    ]
    check_pinned(chain[-1], roots, "AMD")
    ends = check_chain(chain, at(now))
    crl = read_crl(given.crl, "list of revoked certificates")
    ends = min(ends, check_revoked(chain[:2], crl, chain[2], at(now)))
    _check_signature(quote, chain[0])
    levels = _check_key(report, chain[0])
    _check_policy(report)
    return Claims(
        "snp",
        {"measurement": report.measurement.hex(), "host_data": report.host_data.hex()},
        report.report_data,
        ", ".join(f"{component} {version}" for component, version in levels.items()),
        levels,
        expires=ends,
    )


def _check_signature(quote: bytes, vcek: x509.Certificate) -> None:
    key = vcek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AttestationRefused("certificates", "its VCEK has a key of another kind")
    r, s = (_number(quote, SIGNED + place, SCALAR) for place in (0, 72))
    try:
        key.verify(utils.encode_dss_signature(r, s), quote[:SIGNED], ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise AttestationRefused("signature", "its report is not signed by its chip") from error


def _check_key(report: SnpReport, vcek: x509.Certificate) -> Mapping[str, int]:
    """That the key is that of the report's chip, made for its versions. Returns those."""
    turin = b"Turin" in _extension(vcek, PRODUCT_OID)
    oids = VERSION_OIDS | ({"fmc": FMC_OID} if turin else {})
    places = _TURIN_PLACES if turin else _PLACES
    levels = {component: report.reported[place] for component, place in places.items()}
    chip = _extension(vcek, CHIP_OID)
    # A Turin has 8 bytes, and zeros behind them in the report.
    if len(chip) < 8 or report.chip != chip.ljust(len(report.chip), b"\0"):
        raise AttestationRefused("certificates", "its VCEK is that of another chip")
    for component, version in levels.items():
        certified = _extension(vcek, oids[component])
        if certified[:1] != b"\x02" or int.from_bytes(certified[2:], "big") != version:
            raise AttestationRefused(
                "certificates", f"its VCEK was made for another version of {component} than {version}"
            )
    return levels


def _check_policy(report: SnpReport) -> None:
    if report.policy & POLICY_DEBUG:
        raise AttestationRefused("debug", "its machine may be debugged: whoever owns it can read all of it")
    if report.policy & POLICY_MIGRATES:
        raise AttestationRefused("debug", "its machine may be moved by an agent that nothing is known of")
    if report.level != 0:
        raise AttestationRefused(
            "privilege", f"it was asked for at the privilege level {report.level}, not 0"
        )


def _extension(certificate: x509.Certificate, oid: str) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(x509.ObjectIdentifier(oid)).value
    except (x509.ExtensionNotFound, ValueError) as error:
        raise AttestationRefused("certificates", f"its VCEK does not say {oid}") from error
    return value.value if isinstance(value, x509.UnrecognizedExtension) else b""


def _number(data: bytes, start: int, size: int) -> int:
    return int.from_bytes(data[start : start + size], "little")
