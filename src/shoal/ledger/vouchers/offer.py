"""That a client will pay for a session over a payment channel: signed by who signs its vouchers. Pure.

The terms of a payment channel are on the chain for all to read. Without a signature anybody could have work
done that its payer is then asked for.
"""

from __future__ import annotations

import msgspec

from shoal.errors import RemoteProtocolError, VoucherRefused
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import Recover
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain, keccak256
from shoal.ledger.vouchers.voucher import COIN, PaymentTerms
from shoal.types import PeerId
from shoal.wire.paying import PaymentOffer

OFFER_CONTEXT = b"shoal payment offer 1\n"
SALT_CONTEXT = b"shoal payment channel of a node 1\n"
BOUND = 16
"""Bytes of a salt that name the node; the rest is by chance."""
LEAST_DELAY_S = 86400
"""Between the payer's wish to close and the end: whoever runs the node must have redeemed by then."""

_terms = msgspec.msgpack.Decoder(PaymentTerms)


def salt_for(node: PeerId, by_chance: bytes) -> bytes:
    """The salt of a payment channel over which one node alone is paid.

    Else each node of a wallet would take the same voucher, for which the chain pays once.

    Args:
        by_chance: 16 bytes, so that the same two can open another.
    """
    return keccak256(SALT_CONTEXT + node.encode())[:BOUND] + by_chance


def is_bound(terms: PaymentTerms, node: PeerId) -> bool:
    """Whether ``node`` is the one that is paid over a payment channel."""
    return terms.salt == salt_for(node, terms.salt[BOUND:])


def offer_payment(
    key: ChainKey, domain: SigningDomain, terms: PaymentTerms, client: PeerId, price: int
) -> PaymentOffer:
    """Let ``client`` have work done that is paid over the payment channel of ``terms``.

    Args:
        price: for a million tokens of one block.
    """
    signature = key.sign(_offered(domain, terms, client, price))
    encoded = msgspec.msgpack.encode(terms)
    return PaymentOffer(price, domain.chain_id, domain.contract, encoded, signature)


def check_offer(
    offer: PaymentOffer,
    client: PeerId,
    node: PeerId,
    domain: SigningDomain,
    payee: ChainAddress,
    recover: Recover,
) -> PaymentTerms:
    """The terms of the payment channel over which ``client`` may have itself served by ``node``, whose wallet
    has the address ``payee``.

    Raises:
        VoucherRefused: it may not; says why in its ``reason``.
        RemoteProtocolError: they are no terms.
    """
    if offer.chain_id != domain.chain_id:
        message = f"this node is paid on chain {domain.chain_id}, not on {offer.chain_id}"
        raise VoucherRefused(message, reason="other chain")
    if offer.contract != domain.contract:
        raise VoucherRefused("this node is paid at another contract", reason="other contract")
    try:
        terms = _terms.decode(offer.terms)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"no terms of a payment channel: {error}") from error
    # Whoever may sign for the payee can give all of it back to the payer.
    if (terms.payee, terms.payee_signer, terms.token) != (payee, payee, COIN):
        message = "this payment channel pays somebody else, in another coin, or lets others sign for it"
        raise VoucherRefused(message, reason="other channel")
    if not is_bound(terms, node):
        raise VoucherRefused(
            f"this payment channel is not of this node, {node}: another one of its wallet may be paid by it",
            reason="other channel",
            check="open one to this node",
            next_command=f"shoal wallet fund --peer {node}",
        )
    if terms.delay_s < LEAST_DELAY_S:
        message = f"this payment channel closes too soon: {terms.delay_s} s after its payer asks for it"
        raise VoucherRefused(
            message,
            reason="other channel",
            check=f"open one that closes {LEAST_DELAY_S} s after you ask for it, or later",
        )
    if recover(_offered(domain, terms, client, offer.price), offer.signature) != terms.payer_signer:
        message = "the payer of this payment channel has not let this client have it pay"
        raise VoucherRefused(message, reason="signature")
    return terms


def _offered(domain: SigningDomain, terms: PaymentTerms, client: PeerId, price: int) -> bytes:
    signed = (terms.channel_id(domain), client, price)
    return keccak256(OFFER_CONTEXT + msgspec.msgpack.encode(signed))
