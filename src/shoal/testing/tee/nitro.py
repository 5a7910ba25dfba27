"""A Nitro enclave that there is not."""

from __future__ import annotations

from datetime import datetime

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from shoal.testing.tee.authority import root
from shoal.trust.attestation.chains import key_hash
from shoal.trust.attestation.evidence import Binding, Evidence
from shoal.trust.attestation.measurements import NitroEntry

PCRS = {0: b"\x10" * 48, 1: b"\x11" * 48, 2: b"\x12" * 48}


class FakeEnclave:
    """An enclave with its key and chain, which begin to be valid at ``begins``."""

    def __init__(self, begins: datetime, *, issuer_may_issue: bool = True) -> None:
        self._key = ec.generate_private_key(ec.SECP384R1())
        top = root(
            "aws.nitro-enclaves.test", ec.generate_private_key(ec.SECP384R1()), hashes.SHA384(), begins
        )
        zone = top.issue("zone", ec.generate_private_key(ec.SECP384R1()), begins, ca=issuer_may_issue)
        self._leaf = zone.issue("enclave", self._key, begins, ca=False)
        self._bundle = [top.der, zone.der]
        self.roots = frozenset({key_hash(top.certificate)})

    def document(
        self,
        user_data: bytes,
        made: float,
        *,
        pcrs: dict[int, bytes] | None = None,
        bundle: list[bytes] | None = None,
    ) -> bytes:
        """A document that it has signed at the time ``made``."""
        payload = cbor2.dumps(
            {
                "module_id": "i-test",
                "digest": "SHA384",
                "timestamp": int(made * 1e3),
                "pcrs": pcrs or PCRS,
                "certificate": self._leaf.der,
                "cabundle": bundle or self._bundle,
                "user_data": user_data,
            }
        )
        protected = cbor2.dumps({1: -35})
        signed = cbor2.dumps(["Signature1", protected, b"", payload])
        r, s = utils.decode_dss_signature(self._key.sign(signed, ec.ECDSA(hashes.SHA384())))
        return cbor2.dumps([protected, {}, payload, r.to_bytes(48, "big") + s.to_bytes(48, "big")])

    def evidence(self, binding: Binding, made: float, *, pcrs: dict[int, bytes] | None = None) -> Evidence:
        """What a node in it presents."""
        return Evidence("nitro", binding, self.document(binding.report_data, made, pcrs=pcrs))


def allowed_enclave() -> NitroEntry:
    """An entry of a list that allows it."""
    pcr0, pcr1, pcr2 = (value.hex() for value in PCRS.values())
    return NitroEntry(name="a test", pcr0=pcr0, pcr1=pcr1, pcr2=pcr2)
