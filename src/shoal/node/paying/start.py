"""What a node asks for, by its settings: who is paid is its wallet's address. Its key is needed for redeeming
alone, which is left to others where no password is given."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from shoal.config import Settings
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.chain.deployment import read_deployment
from shoal.ledger.settling import PaymentBooks, redeem
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.wallet import open_wallet, read_password, wallet_address
from shoal.node.paying.payee_desk import PayeeDesk
from shoal.node.paying.redeemer import Redeemer
from shoal.option_values import price_of
from shoal.types import PeerId


def payee_desk(peer: PeerId, settings: Settings) -> PayeeDesk:
    """What the node ``peer`` asks for.

    To be called from a thread: it asks the chain's node, and takes a second for a password.

    Raises:
        UsageError: there is no wallet, or no ``chain.toml``, or the password's file cannot be read.
        BadLedgerFile, NotAllowed: one of them is damaged, the wallet may be read by others, or the password
            is wrong.
        IncompatibleLibrary: the extra is not installed.
        ChainError: the node is away, or is of another chain.
    """
    address = wallet_address(settings.paths.wallet)
    client = ChainClient(read_deployment(settings.paths.chain))
    client.check()
    books = PaymentBooks.below(settings.paths.payments)
    redeemer = None
    domain = client.deployment.escrow
    if settings.pay_password_file and settings.redeem_at:
        password = read_password(Path(settings.pay_password_file).expanduser())
        chain = WalletRedeeming(client, books, open_wallet(settings.paths.wallet, password))
        redeemer = Redeemer(books.paid, chain, domain, address, settings.redeem_at, time.time)
    price = price_of(settings.price)
    return PayeeDesk(peer, books.paid, client, domain, address, price, time.time, redeemer)


@dataclass(frozen=True, slots=True)
class WalletRedeeming:
    """Redeems from a wallet. A :class:`~shoal.node.paying.redeemer.RedeemingChain`."""

    client: ChainClient
    books: PaymentBooks
    key: ChainKey

    def gas_price(self) -> int:
        """What a unit of gas costs now, in wei. Raises ChainError: down."""
        return self.client.gas_price()

    def redeem(self, channel_id: bytes) -> PayeeAccount:
        """Have the newest voucher paid out. Raises as :func:`shoal.ledger.settling.redeem`."""
        return redeem(self.client, self.books, self.key, channel_id)
