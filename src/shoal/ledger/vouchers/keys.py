"""Keys of a chain: secp256k1, signed and recovered by libsecp256k1 in 0.1 to 0.2 ms.

Pure Python takes a hundred times as long. Still, nothing of this belongs inside a step.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import ModuleType

from shoal.errors import IncompatibleLibrary
from shoal.ledger.vouchers.typed_data import ChainAddress, keccak256

SIGNATURE = 65
"""Bytes of a signature: r, s and v, which is 27 or 28."""
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
"""A signature with a greater s is another form of one with a smaller: EIP-2 refuses it."""


@dataclass(frozen=True, slots=True)
class ChainKey:
    """A private key and its address. Never shown."""

    secret: bytes = field(repr=False)
    address: ChainAddress

    @classmethod
    def from_secret(cls, secret: bytes) -> ChainKey:
        """The key of 32 secret bytes.

        Raises:
            ValueError: they are no key of this curve.
        """
        public = _coincurve().PrivateKey(secret).public_key.format(compressed=False)
        return cls(secret, _address(public))

    @classmethod
    def generate(cls) -> ChainKey:
        """A new one."""
        return cls.from_secret(_coincurve().PrivateKey().secret)

    def sign(self, digest: bytes) -> bytes:
        """Sign 32 bytes, always in the same way (RFC 6979)."""
        signature = _coincurve().PrivateKey(self.secret).sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([27 + signature[64]])


def recover(digest: bytes, signature: bytes) -> ChainAddress | None:
    """Who signed 32 bytes; ``None`` where nobody did, or in a form that the contracts refuse."""
    if len(signature) != SIGNATURE or signature[64] not in (27, 28):
        return None
    if int.from_bytes(signature[32:64], "big") > HALF_ORDER:
        return None
    compact = signature[:64] + bytes([signature[64] - 27])
    coincurve = _coincurve()
    try:
        public = coincurve.PublicKey.from_signature_and_message(compact, digest, hasher=None)
    except Exception:  # noqa: BLE001  the library raises bare Exception for numbers that are on no curve
        return None
    return _address(public.format(compressed=False))


def _address(public: bytes) -> ChainAddress:
    return ChainAddress(keccak256(public[1:])[12:])


def _coincurve() -> ModuleType:
    try:
        import coincurve  # noqa: PLC0415  an extra, which only this needs
    except ImportError as error:
        raise IncompatibleLibrary(
            "keys and vouchers need coincurve, which is not installed",
            check="install the extra",
            next_command="pip install 'shoal[ledger]'",
        ) from error
    return coincurve
