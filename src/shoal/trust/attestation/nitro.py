"""Documents of AWS Nitro enclaves: COSE_Sign1 over CBOR, with the chain to AWS's root inside.

https://docs.aws.amazon.com/enclaves/latest/user/verify-root.html. Certificates of enclaves are valid for
hours; lists of revoked ones are not looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import cbor2
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from shoal.trust.attestation.chains import at, check_chain, check_pinned, read_certificate
from shoal.trust.attestation.evidence import AttestationRefused, Claims

AWS_ROOTS = frozenset({"f2caf5ecc6190b4a8399b78bc58a2bbcd0382375db8a1bfd78a82743874fd225"})
"""SHA-256 of their public keys: of the root G1, whose fingerprint AWS publishes as 64:1A:03:21:A3:E2:44:…."""

ES384 = {1: -35}
SCALAR = 48
MAX_CHAIN = 8
MAX_DEPTH = 6
MAX_AGE_S = 300.0
"""How old a document may be, by its own clock and ours."""
PCRS = ("pcr0", "pcr1", "pcr2")


def verify_nitro(quote: bytes, now: float, roots: Collection[str] = AWS_ROOTS) -> Claims:
    """Verify a document at the time ``now``, in seconds since the epoch.

    Args:
        roots: the SHA-256 of the public keys of the roots that are believed.

    Raises:
        AttestationRefused: it does not hold.
    """
    protected, payload, signature = _envelope(quote)
    document = _mapping(_decoded(payload))
    chain = _chain(document)
    check_pinned(chain[-1], roots, "AWS")
    ends = check_chain(chain, at(now))
    _check_signature(chain[0], protected, payload, signature)
    made = document.get("timestamp")
    if not isinstance(made, int) or abs(now - made / 1e3) > MAX_AGE_S:
        raise AttestationRefused("age", f"its document is not of the last {MAX_AGE_S:.0f} s")
    pcrs = _mapping(document.get("pcrs"))
    found = {f"pcr{index}": value.hex() for index, value in pcrs.items() if isinstance(value, bytes)}
    if not all(name in found for name in PCRS):
        raise AttestationRefused("unreadable", "its document lacks a measurement")
    if not any(cast("bytes", pcrs[0])):
        raise AttestationRefused("debug", "its enclave is under debug: whoever owns it can read all of it")
    data = document.get("user_data")
    return Claims(
        "nitro",
        {name: found[name] for name in PCRS},
        data if isinstance(data, bytes) else b"",
        "kept by AWS",
        {},
        expires=ends,
    )


def _envelope(quote: bytes) -> tuple[bytes, bytes, bytes]:
    outer = _decoded(quote)
    if isinstance(outer, cbor2.CBORTag):
        outer = outer.value
    match outer:
        case [bytes(protected), _, bytes(payload), bytes(signature)] if len(signature) == 2 * SCALAR:
            pass
        case _:
            raise AttestationRefused("unreadable", "its document is no COSE_Sign1 of the right kind")
    if _decoded(protected) != ES384:
        raise AttestationRefused("unreadable", "its document is signed by another algorithm than ES384")
    return protected, payload, signature


def _chain(document: Mapping[Any, Any]) -> list[x509.Certificate]:
    """The enclave's certificate, then each issuer up to the root; in the document the root is the first."""
    match document.get("certificate"), document.get("cabundle"):
        case bytes(leaf), [*bundle] if 0 < len(bundle) <= MAX_CHAIN:
            given = [leaf, *reversed(bundle)]
        case _:
            raise AttestationRefused("unreadable", "its document has no certificates")
    if not all(isinstance(data, bytes) for data in given):
        raise AttestationRefused("unreadable", "its document has certificates that are none")
    return [read_certificate(data, "certificate") for data in given]


def _check_signature(leaf: x509.Certificate, protected: bytes, payload: bytes, signature: bytes) -> None:
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise AttestationRefused("certificates", "its certificate has a key of another kind")
    r, s = (int.from_bytes(signature[place : place + SCALAR], "big") for place in (0, SCALAR))
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    try:
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature as error:
        raise AttestationRefused("signature", "its document is not signed by its enclave's key") from error


def _decoded(data: bytes) -> Any:
    try:
        return cbor2.loads(data, max_depth=MAX_DEPTH)
    except (cbor2.CBORDecodeError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise AttestationRefused("unreadable", "its document cannot be read") from error


def _mapping(value: Any) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise AttestationRefused("unreadable", "its document has another form")
    return cast("Mapping[Any, Any]", value)
