"""What a payer signs: "of this payment channel, so much in all is yours". The newest is worth all before it.

The types are those of x402's scheme ``batch-settlement``, so that its tools read them; only the contract,
which is part of what is signed, is ours. A payment channel is named by the hash of its terms.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from shoal.ledger.vouchers.keys import SIGNATURE, ChainKey
from shoal.ledger.vouchers.typed_data import (
    MAX_UINT128,
    AddressBytes,
    SigningDomain,
    WordBytes,
    hash_typed,
    keccak256,
    word,
)

DOMAIN_NAME = "x402 Batch Settlement"
COIN = bytes(20)
"""Instead of a token's address: the chain's own coin."""
MIN_DELAY_S, MAX_DELAY_S = 900, 30 * 86400
"""Between the wish to close and the end."""
MAX_AMOUNT = MAX_UINT128

_TERMS_TYPE = keccak256(
    b"ChannelConfig(address payer,address payerAuthorizer,address receiver,"
    b"address receiverAuthorizer,address token,uint40 withdrawDelay,bytes32 salt)"
)
_VOUCHER_TYPE = keccak256(b"Voucher(bytes32 channelId,uint128 maxClaimableAmount)")


def escrow_domain(chain_id: int, contract: bytes) -> SigningDomain:
    """Where vouchers of an escrow contract hold."""
    return SigningDomain(chain_id, contract, DOMAIN_NAME)


class PaymentTerms(Struct, frozen=True, kw_only=True):
    """What a payment channel is, from its opening to its end: x402's ``ChannelConfig``."""

    payer: AddressBytes
    """Who pays in, and gets back what is left."""
    payer_signer: AddressBytes
    """Who signs vouchers: the payer, or a key that it lets spend."""
    payee: AddressBytes
    """Who is paid."""
    payee_signer: AddressBytes
    """Who may redeem and give back for the payee."""
    token: AddressBytes = COIN
    delay_s: Annotated[int, Meta(ge=MIN_DELAY_S, le=MAX_DELAY_S)] = 86400
    """How long the payee can still redeem once the payer wants to close."""
    salt: WordBytes = bytes(32)
    """So that the same two can open another."""

    def channel_id(self, domain: SigningDomain) -> bytes:
        """The 32 bytes that name the payment channel, at this contract alone."""
        fields = b"".join(
            map(word, (self.payer, self.payer_signer, self.payee, self.payee_signer, self.token))
        )
        return hash_typed(domain, _TERMS_TYPE, fields + word(self.delay_s) + self.salt)


class Voucher(Struct, frozen=True, array_like=True):
    """As it goes over the wire. What is not signed as it stands here was signed by somebody else."""

    chain_id: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    contract: AddressBytes
    channel_id: WordBytes
    amount_bytes: Annotated[bytes, Meta(max_length=32)]
    """Big-endian, as MessagePack has no numbers of 128 bits."""
    signature: Annotated[bytes, Meta(min_length=SIGNATURE, max_length=SIGNATURE)]

    @property
    def amount(self) -> int:
        """All that was ever paid over this payment channel, in the token's smallest unit."""
        return int.from_bytes(self.amount_bytes, "big")

    @property
    def digest(self) -> bytes:
        """What the signature is over.

        Raises:
            OverflowError: the amount has more than 128 bits.
        """
        return voucher_digest(escrow_domain(self.chain_id, self.contract), self.channel_id, self.amount)


def voucher_digest(domain: SigningDomain, channel_id: bytes, amount: int) -> bytes:
    """What a payer signs.

    Raises:
        OverflowError: the amount has more than 128 bits.
    """
    if amount > MAX_AMOUNT:
        raise OverflowError("a voucher's amount has 128 bits")
    return hash_typed(domain, _VOUCHER_TYPE, channel_id + word(amount))


def sign_voucher(key: ChainKey, domain: SigningDomain, channel_id: bytes, amount: int) -> Voucher:
    """Pay ``amount`` in all. The caller keeps it on disk before anybody else sees it.

    Raises:
        OverflowError: the amount has more than 128 bits.
    """
    signature = key.sign(voucher_digest(domain, channel_id, amount))
    encoded = amount.to_bytes(max(1, (amount.bit_length() + 7) // 8), "big")
    return Voucher(domain.chain_id, domain.contract, channel_id, encoded, signature)
