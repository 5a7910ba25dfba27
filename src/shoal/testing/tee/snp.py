"""A chip of AMD's that there is not."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa, utils

from shoal.testing.tee.authority import LIVES, root
from shoal.trust.attestation.chains import key_hash
from shoal.trust.attestation.evidence import Binding, Evidence
from shoal.trust.attestation.measurements import SnpEntry, SnpVersions
from shoal.trust.attestation.snp import (
    CHIP_OID,
    FMC_OID,
    PRODUCT_OID,
    SIGNED,
    VERSION_OIDS,
    SnpCollateral,
)

MEASUREMENT = bytes(range(48))
VERSIONS = {"boot_loader": 4, "tee": 0, "snp": 22, "microcode": 213}


class FakeChip:
    """A chip with its keys and certificates, which begin to be valid at ``begins``.

    Args:
        product: as AMD calls it.
        revoked: whether its ASK is on the list of revoked certificates.
        crl_lives: how long that list holds.
        older: whether its key was made for an older version than it runs.
    """

    def __init__(
        self,
        begins: datetime,
        *,
        product: str = "Milan-B0",
        revoked: bool = False,
        crl_lives: timedelta = LIVES,
        older: bool = False,
    ) -> None:
        self.turin = product.startswith("Turin")
        self.chip = (bytes(range(8)) if self.turin else bytes(range(64))).ljust(64, b"\0")
        self._key = ec.generate_private_key(ec.SECP384R1())
        ark = root("ARK-Test", rsa.generate_private_key(65537, 2048), hashes.SHA384(), begins)
        ask = ark.issue("SEV-Test", rsa.generate_private_key(65537, 2048), begins)
        oids = VERSION_OIDS | ({"fmc": FMC_OID} if self.turin else {})
        versions = VERSIONS | ({"fmc": 1} if self.turin else {})
        versions |= {"snp": versions["snp"] - older}
        extensions = [
            (PRODUCT_OID, b"\x16" + bytes([len(product)]) + product.encode()),
            (CHIP_OID, self.chip[:8] if self.turin else self.chip),
            *((oid, _integer(versions[component])) for component, oid in oids.items()),
        ]
        vcek = ask.issue("SEV-VCEK", self._key, begins, extensions=extensions)
        crl = ark.revoke([ask.certificate.serial_number] if revoked else [], begins, lives=crl_lives)
        self.roots = frozenset({key_hash(ark.certificate)})
        self.collateral = SnpCollateral(vcek.der, ask.der, ark.der, crl)

    def report(
        self,
        report_data: bytes,
        *,
        policy: int = 0x30000,
        level: int = 0,
        flags: int = 0,
        measurement: bytes = MEASUREMENT,
    ) -> bytes:
        """A report that this chip has signed."""
        fields: Sequence[tuple[int, bytes]] = (
            (0, (2).to_bytes(4, "little")),
            (8, policy.to_bytes(8, "little")),
            (0x30, level.to_bytes(4, "little")),
            (0x34, (1).to_bytes(4, "little")),
            (0x48, flags.to_bytes(4, "little")),
            (0x50, report_data),
            (0x90, measurement),
            (0x180, self._versions()),
            (0x1A0, self.chip),
        )
        body = bytearray(SIGNED)
        for place, data in fields:
            body[place : place + len(data)] = data
        r, s = utils.decode_dss_signature(self._key.sign(bytes(body), ec.ECDSA(hashes.SHA384())))
        scalars = b"".join(number.to_bytes(48, "little").ljust(72, b"\0") for number in (r, s))
        return bytes(body) + scalars.ljust(0x4A0 - SIGNED, b"\0")

    def evidence(
        self, binding: Binding, *, policy: int = 0x30000, level: int = 0, flags: int = 0
    ) -> Evidence:
        """What a node on it presents."""
        report = self.report(binding.report_data, policy=policy, level=level, flags=flags)
        return Evidence("snp", binding, report, self.collateral.encoded())

    def _versions(self) -> bytes:
        boot, tee, snp, microcode = VERSIONS.values()
        if self.turin:
            return bytes([1, boot, tee, snp, 0, 0, 0, microcode])
        return bytes([boot, tee, 0, 0, 0, 0, snp, microcode])


def allowed_chip(**least: int) -> SnpEntry:
    """An entry of a list that allows it."""
    return SnpEntry(name="a test", measurement=MEASUREMENT.hex(), least=SnpVersions(**(VERSIONS | least)))


def _integer(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "big")
    return b"\x02" + bytes([len(data)]) + data
