"""Certificates and lists of revoked ones, as a maker of hardware issues them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

IssuingKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
LIVES = timedelta(days=30)


@dataclass(frozen=True)
class Authority:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: IssuingKey
    hash: hashes.SHA256 | hashes.SHA384

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(Encoding.PEM).decode()

    def issue(
        self,
        name: str,
        key: IssuingKey,
        begins: datetime,
        *,
        lives: timedelta = LIVES,
        ca: bool = True,
        extensions: Sequence[tuple[str, bytes]] = (),
        serial: int | None = None,
    ) -> Authority:
        """A certificate of this authority's. ``extensions``: by OID, as DER."""
        builder = _builder(name, self.certificate.subject, key, begins, lives, ca=ca)
        if serial is not None:
            builder = builder.serial_number(serial)
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(aki, critical=False)
        for oid, value in extensions:
            unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
            builder = builder.add_extension(unknown, critical=False)
        return Authority(_signed(builder, self.key, self.hash), key, self.hash)

    def revoke(self, serials: Sequence[int], begins: datetime, *, lives: timedelta = LIVES) -> bytes:
        """A list of revoked certificates, as DER."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(begins)
            .next_update(begins + lives)
            .add_extension(x509.CRLNumber(1), critical=False)
        )
        aki = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = builder.add_extension(aki, critical=False)
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(begins).build()
            builder = builder.add_revoked_certificate(entry)
        if isinstance(self.key, rsa.RSAPrivateKey):
            crl = builder.sign(self.key, self.hash, rsa_padding=_pss(self.hash))
        else:
            crl = builder.sign(self.key, self.hash)
        return crl.public_bytes(Encoding.DER)


def root(name: str, key: IssuingKey, hash: hashes.SHA256 | hashes.SHA384, begins: datetime) -> Authority:
    """A root of its own."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = _builder(name, subject, key, begins, 100 * LIVES, ca=True)
    return Authority(_signed(builder, key, hash), key, hash)


def _builder(
    name: str, issuer: x509.Name, key: IssuingKey, begins: datetime, lives: timedelta, *, ca: bool
) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + lives)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(
    builder: x509.CertificateBuilder, key: IssuingKey, hash: hashes.SHA256 | hashes.SHA384
) -> x509.Certificate:
    if isinstance(key, rsa.RSAPrivateKey):
        return builder.sign(key, hash, rsa_padding=_pss(hash))
    return builder.sign(key, hash)


def _pss(hash: hashes.SHA256 | hashes.SHA384) -> padding.PSS:
    return padding.PSS(padding.MGF1(hash), hash.digest_size)
