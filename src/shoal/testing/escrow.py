"""A chain that is none: what is in escrow, as numbers. For payments in memory."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.offer import salt_for
from shoal.ledger.vouchers.payer import PayerAccount
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain
from shoal.ledger.vouchers.voucher import PaymentTerms, escrow_domain
from shoal.types import PeerId


@dataclass
class PretendedEscrow:
    """Of one payment channel."""

    deposit: int = 0
    redeemed: int = 0
    closes_at: float | None = None


class PretendedChain:
    """Payment channels, and who has paid into them."""

    def __init__(self) -> None:
        self.domain: SigningDomain = escrow_domain(31337, b"e" * 20)
        self.channels: dict[bytes, PretendedEscrow] = {}

    def escrow_state(self, channel_id: bytes) -> PretendedEscrow:
        """What is in escrow."""
        return self.channels.get(channel_id, PretendedEscrow())

    def fund(
        self, books: PaymentBooks, key: ChainKey, payee: ChainAddress, node: PeerId, amount: int
    ) -> PayerAccount:
        """Open a payment channel with ``amount`` for what ``node`` does, and keep it."""
        terms = PaymentTerms(
            payer=key.address,
            payer_signer=key.address,
            payee=payee,
            payee_signer=payee,
            salt=salt_for(node, secrets.token_bytes(16)),
        )
        channel_id = terms.channel_id(self.domain)
        self.channels[channel_id] = PretendedEscrow(deposit=amount)
        account = PayerAccount(
            terms=terms, domain=self.domain, channel_id=channel_id, deposit=amount, budget=amount
        )
        books.paying.add(account)
        return account
