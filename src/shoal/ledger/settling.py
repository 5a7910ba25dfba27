"""A payment channel between what is kept here and what the chain says: opened, fed, redeemed, ended."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from shoal.errors import UsageError
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.payer import PayerAccount
from shoal.ledger.vouchers.typed_data import ChainAddress
from shoal.ledger.vouchers.voucher import PaymentTerms

Withdrawal = Literal["redeemed", "close requested", "waiting", "taken back"]


@dataclass(frozen=True, slots=True)
class PaymentBooks:
    """Both sides of this machine."""

    paying: PaymentBook[PayerAccount]
    paid: PaymentBook[PayeeAccount]

    @classmethod
    def below(cls, folder: Path) -> PaymentBooks:
        """Those in a folder."""
        return cls(PaymentBook(folder / "paying", PayerAccount), PaymentBook(folder / "paid", PayeeAccount))


def fund(
    client: ChainClient, books: PaymentBooks, key: ChainKey, payee: ChainAddress, amount: int
) -> PayerAccount:
    """Pay ``amount`` wei into the open payment channel to ``payee``; without one, open one.

    The account is kept before anything is sent, so that no money is where nobody knows of it.

    Raises:
        UsageError: the payee is the payer.
        ChainError: as :meth:`ChainClient.transact`.
    """
    if payee == key.address:
        raise UsageError("a wallet cannot pay itself", check="give the address of whom you want to pay")
    client.check()
    account = _open_to(client, books, payee)
    if account is None:
        account = _begin(client, key, payee)
        books.paying.add(account)
    client.deposit(key, account.terms, amount)
    refresh_payer(client, books, account.channel_id)
    return books.paying.change(account.channel_id, lambda now: _allow(now, amount))


def refresh_payer(client: ChainClient, books: PaymentBooks, channel_id: bytes) -> PayerAccount:
    """Note what the chain says of the escrow of a payment channel.

    Raises:
        ChainError: the node is down.
    """
    deposit = client.escrow_state(channel_id).deposit

    def note(account: PayerAccount) -> PayerAccount:
        return msgspec.structs.replace(account, deposit=deposit)

    return books.paying.change(channel_id, note)


def refresh_payee(client: ChainClient, books: PaymentBooks, channel_id: bytes) -> PayeeAccount:
    """The same for one over which this machine is paid.

    Raises:
        ChainError: the node is down.
    """
    state = client.escrow_state(channel_id)

    def note(account: PayeeAccount) -> PayeeAccount:
        return msgspec.structs.replace(
            account, deposit=state.deposit, redeemed=state.redeemed, closes_at=state.closes_at
        )

    return books.paid.change(channel_id, note)


def withdraw(client: ChainClient, books: PaymentBooks, key: ChainKey, channel_id: bytes) -> Withdrawal:
    """Take out what is ours: of one over which we are paid, what the newest voucher gives; of one over which
    we pay, what is left, for which the payee is given its time first.

    Raises:
        UsageError: it is not kept here, or there is nothing to take out.
        ChainError: as :meth:`ChainClient.transact`.
    """
    client.check()
    if channel_id in books.paid.channel_ids():
        account = refresh_payee(client, books, channel_id)
        if account.voucher is None or not account.unredeemed:
            raise UsageError("no voucher of this payment channel is worth more than was redeemed")
        client.redeem(key, account.terms, account.voucher)
        refresh_payee(client, books, channel_id)
        return "redeemed"
    terms = books.paying.read(channel_id).terms
    state = client.escrow_state(channel_id)
    if state.deposit == state.redeemed:
        raise UsageError("nothing is left in this payment channel")
    if state.closes_at is None:
        client.request_close(key, terms)
        return "close requested"
    if client.now() < state.closes_at:
        return "waiting"
    client.take_back(key, terms)
    refresh_payer(client, books, channel_id)
    return "taken back"


def _allow(account: PayerAccount, amount: int) -> PayerAccount:
    """What was paid in may be spent."""
    return msgspec.structs.replace(account, budget=account.budget + amount)


def _open_to(client: ChainClient, books: PaymentBooks, payee: ChainAddress) -> PayerAccount | None:
    for channel_id in books.paying.channel_ids():
        account = books.paying.read(channel_id)
        ours = account.terms.payee == payee and account.domain == client.deployment.escrow
        if ours and client.escrow_state(channel_id).closes_at is None:
            return account
    return None


def _begin(client: ChainClient, key: ChainKey, payee: ChainAddress) -> PayerAccount:
    terms = PaymentTerms(
        payer=key.address,
        payer_signer=key.address,
        payee=payee,
        payee_signer=payee,
        salt=secrets.token_bytes(32),
    )
    domain = client.deployment.escrow
    channel_id = terms.channel_id(domain)
    return PayerAccount(terms=terms, domain=domain, channel_id=channel_id, deposit=0, budget=0, price=0)
