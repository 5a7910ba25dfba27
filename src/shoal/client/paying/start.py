"""Who pays for a client, by its settings: this machine's wallet."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from shoal.client.paying.voucher_payer import VoucherPayer
from shoal.config import Settings
from shoal.errors import UsageError
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.chain.deployment import read_deployment
from shoal.ledger.settling import PaymentBooks, fund
from shoal.ledger.wallet import open_wallet, read_password
from shoal.option_values import price_of
from shoal.types import PeerId


def wallet_payer(client: PeerId, settings: Settings) -> VoucherPayer:
    """What pays for ``client``.

    To be called from a thread: it takes a second for the password, and asks the chain's node.

    Raises:
        UsageError: there is no wallet, no ``chain.toml``, or no password.
        NotAllowed: the password is wrong.
        BadLedgerFile: the wallet is damaged.
        IncompatibleLibrary: the extra is not installed.
        ChainError: the node is away, or is of another chain.
    """
    if not settings.pay_password_file:
        raise UsageError(
            "pay_budget is set, and pay_password_file is not",
            check="name the file with the wallet's password, or leave pay_budget out",
            next_command="shoal config",
        )
    password = read_password(Path(settings.pay_password_file).expanduser())
    key = open_wallet(settings.paths.wallet, password)
    chain = ChainClient(read_deployment(settings.paths.chain))
    chain.check()
    books = PaymentBooks.below(settings.paths.payments)
    pay_in, budget = partial(fund, chain, books, key), price_of(settings.pay_budget)
    return VoucherPayer(client, key, books, pay_in, chain.deployment.escrow, budget)
