"""What a node asks for, by its settings: who is paid is its wallet's address, and its key is not needed."""

from __future__ import annotations

import time

from shoal.config import Settings
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.chain.deployment import read_deployment
from shoal.ledger.settling import PaymentBooks
from shoal.ledger.wallet import wallet_address
from shoal.node.paying.payee_desk import PayeeDesk
from shoal.option_values import price_of


def payee_desk(settings: Settings) -> PayeeDesk:
    """To be called from a thread: it asks the chain's node.

    Raises:
        UsageError: there is no wallet, or no ``chain.toml``.
        BadLedgerFile, NotAllowed: one of them is damaged, or the wallet may be read by others.
        IncompatibleLibrary: the extra is not installed.
        ChainError: the node is away, or is of another chain.
    """
    address = wallet_address(settings.paths.wallet)
    client = ChainClient(read_deployment(settings.paths.chain))
    client.check()
    book = PaymentBooks.below(settings.paths.payments).paid
    return PayeeDesk(book, client, client.deployment.escrow, address, price_of(settings.price), time.time)
