"""Typed data as EIP-712 hashes it, for the few types that are signed here.

https://eips.ethereum.org/EIPS/eip-712. Only hashing: keys are in :mod:`shoal.ledger.vouchers.keys`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, NewType

from Crypto.Hash import keccak
from msgspec import Meta, Struct

from shoal.errors import UsageError

ADDRESS = 20
WORD = 32
MAX_UINT128 = (1 << 128) - 1

ChainAddress = NewType("ChainAddress", bytes)
"""The last 20 bytes of a public key's hash, or those of a contract."""
AddressBytes = Annotated[bytes, Meta(min_length=ADDRESS, max_length=ADDRESS)]
WordBytes = Annotated[bytes, Meta(min_length=WORD, max_length=WORD)]

_DOMAIN_TYPE = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


def keccak256(data: bytes) -> bytes:
    """Ethereum's hash: Keccak with 256 bits, as it was before it became SHA-3."""
    return keccak.new(digest_bits=256, data=data).digest()


def word(value: int | bytes) -> bytes:
    """A number or an address as the 32 bytes that the chain's ABI has for it.

    Raises:
        OverflowError: it needs more, or is negative.
    """
    if isinstance(value, int):
        return value.to_bytes(WORD, "big")
    return value.rjust(WORD, b"\0")


class SigningDomain(Struct, frozen=True):
    """Where a signature holds: at one contract of one chain, and nowhere else."""

    chain_id: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    contract: AddressBytes
    name: str
    version: str = "1"

    @property
    def separator(self) -> bytes:
        """The hash that makes a signature one of this domain."""
        return _separator(self)


@lru_cache(maxsize=256)
def _separator(domain: SigningDomain) -> bytes:
    name, version = keccak256(domain.name.encode()), keccak256(domain.version.encode())
    fields = name + version + word(domain.chain_id) + word(domain.contract)
    return keccak256(keccak256(_DOMAIN_TYPE) + fields)


def hash_typed(domain: SigningDomain, type_hash: bytes, fields: bytes) -> bytes:
    """What is signed of a struct: its type's hash and its fields, 32 bytes each, in a domain."""
    return keccak256(b"\x19\x01" + domain.separator + keccak256(type_hash + fields))


def show_address(address: bytes) -> str:
    """An address as people read it, with the capitals that make a slip of the pen visible (EIP-55)."""
    digits = address.hex()
    capitals = keccak256(digits.encode()).hex()
    shown = (d.upper() if int(c, 16) >= 8 else d for d, c in zip(digits, capitals, strict=False))
    return "0x" + "".join(shown)


def parse_address(text: str) -> ChainAddress:
    """The address that somebody wrote.

    Raises:
        UsageError: it is none, or its capitals do not fit it.
    """
    digits = text.removeprefix("0x")
    try:
        address = bytes.fromhex(digits)
    except ValueError:
        address = b""
    if len(address) != ADDRESS or len(digits) != 2 * ADDRESS:
        raise UsageError(f"{text[:64]!r} is no address", check="write 0x and 40 hexadecimal digits")
    if digits not in (digits.lower(), digits.upper(), show_address(address)[2:]):
        raise UsageError(
            f"the capitals of the address {text} do not fit it: a digit may be wrong",
            check="copy the address again",
        )
    return ChainAddress(address)
