"""A payment channel between what is kept here and what the chain says: opened, fed, redeemed, ended."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec

from shoal.errors import BadLedgerFile, ChainError, NotAllowed, ShoalError, UsageError
from shoal.ledger.chain.client import ChainClient
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.keys import ChainKey
from shoal.ledger.vouchers.offer import BOUND, is_bound, salt_for
from shoal.ledger.vouchers.payee import PayeeAccount, note_escrow
from shoal.ledger.vouchers.payer import PayerAccount, note_deposit, note_sending
from shoal.ledger.vouchers.redeeming import note_redeemed
from shoal.ledger.vouchers.typed_data import WORD, ChainAddress, show_address
from shoal.ledger.vouchers.voucher import PaymentTerms
from shoal.types import PeerId

Withdrawal = Literal["redeemed", "close requested", "waiting", "taken back"]

log = logging.getLogger(__name__)


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
    client: ChainClient, books: PaymentBooks, key: ChainKey, payee: ChainAddress, node: PeerId, amount: int
) -> PayerAccount:
    """Pay ``amount`` wei into the open payment channel of this key to ``payee`` for what ``node`` does;
    without one, open one.

    The account, and that the amount is on its way, are kept before anything is sent, so that no money is
    where nobody knows of it.

    Raises:
        UsageError: the payee is the payer.
        ChainError: as :meth:`ChainClient.transact`.
    """
    if payee == key.address:
        raise UsageError("a wallet cannot pay itself", check="give the address of whom you want to pay")
    client.check()
    account = _open_to(client, books, key, payee, node)
    if account is None:
        account = _begin(client, key, payee, node)
        books.paying.add(account)
    channel_id = account.channel_id
    books.paying.change(channel_id, lambda now: note_sending(now, amount))
    try:
        client.deposit(key, account.terms, amount)
    except ChainError as error:
        if error.reason != "dropped":  # of all else it is certain that it does not happen
            books.paying.change(channel_id, lambda now: note_sending(now, -amount))
        raise
    refresh_payer(client, books, channel_id)
    # Transactions of a key happen in the order of their numbers: earlier ones are decided with this one.
    return books.paying.change(channel_id, lambda now: msgspec.structs.replace(now, on_the_way=0))


def refresh_payer(client: ChainClient, books: PaymentBooks, channel_id: bytes) -> PayerAccount:
    """Note what the chain says of the escrow of a payment channel.

    Raises:
        UsageError: the payment channel is of another chain or contract.
        ChainError: the node is down.
    """

    def note(account: PayerAccount) -> PayerAccount:
        _check_domain(client, account)
        return note_deposit(account, client.escrow_state(channel_id))

    return books.paying.change(channel_id, note)


def refresh_payee(client: ChainClient, books: PaymentBooks, channel_id: bytes) -> PayeeAccount:
    """The same for one over which this machine is paid.

    Raises:
        UsageError: the payment channel is of another chain or contract.
        ChainError: the node is down.
    """

    def note(account: PayeeAccount) -> PayeeAccount:
        # Asked while the file is held: who asked earlier would else write what is older.
        _check_domain(client, account)
        return note_escrow(account, client.escrow_state(channel_id))

    return books.paid.change(channel_id, note)


def withdraw(client: ChainClient, books: PaymentBooks, key: ChainKey, channel_id: bytes) -> Withdrawal:
    """Take out what is ours: of one over which we are paid, what the newest voucher gives; of one over which
    we pay, what is left, for which the payee is given its time first.

    Raises:
        UsageError: it is not kept here, is of another chain or contract, or there is nothing to take out.
        NotAllowed: it is another wallet's.
        ChainError: as :meth:`ChainClient.transact`.
    """
    if channel_id in books.paid:
        redeem(client, books, key, channel_id)
        return "redeemed"
    account = books.paying.read(channel_id)
    terms = account.terms
    _check_domain(client, account)
    _check_wallet(key, channel_id, terms.payer, terms.payer_signer)
    client.check()
    state = client.escrow_state(channel_id)
    if state.deposit == state.redeemed:
        raise UsageError("nothing is left in this payment channel")
    if state.closes_at is None:
        client.request_close(key, terms)
        refresh_payer(client, books, channel_id)  # nobody is to be offered it any more
        return "close requested"
    try:
        client.take_back(key, terms)
    except ChainError as error:
        # The contract alone can tell: on a chain of one's own no block says how late it is.
        if error.reason == "not yet":
            refresh_payer(client, books, channel_id)
            return "waiting"
        raise
    refresh_payer(client, books, channel_id)
    return "taken back"


def recover(
    client: ChainClient, books: PaymentBooks, payer: ChainAddress, first: int = 0
) -> list[PayerAccount]:
    """Keep again what the chain knows of a wallet's payment channels in which something is left.

    The newest vouchers are not on the chain: the payees have them, and show them.

    Args:
        first: the block from which on the chain is looked through.

    Raises:
        UsageError: more are there than are kept.
        ChainError: as :meth:`ChainClient.deposited`.
    """
    client.check()
    known = set(books.paying.channel_ids())
    domain = client.deployment.escrow
    found: list[PayerAccount] = []
    for terms in client.deposited(payer, first):
        channel_id = terms.channel_id(domain)
        state = client.escrow_state(channel_id)
        ours = terms.payer == terms.payer_signer == payer
        if not ours or channel_id in known or state.deposit == state.redeemed:
            continue
        account = PayerAccount(
            terms=terms,
            domain=domain,
            channel_id=channel_id,
            deposit=state.deposit,
            budget=state.deposit,
            closes_at=state.closes_at,
        )
        books.paying.add(account)
        found.append(account)
    return found


def redeem(client: ChainClient, books: PaymentBooks, key: ChainKey, channel_id: bytes) -> PayeeAccount:
    """Have the newest voucher of a payment channel paid out over which this machine is paid.

    What was paid out is no failure where it cannot be noted: a node drops accounts in which nothing is left.

    Raises:
        UsageError: it is not kept here, is of another chain or contract, or there is nothing to redeem.
        NotAllowed: it is another wallet's.
        ChainError: as :meth:`ChainClient.transact`.
    """
    terms = books.paid.read(channel_id).terms
    _check_wallet(key, channel_id, terms.payee, terms.payee_signer)
    client.check()
    account = refresh_payee(client, books, channel_id)
    if account.voucher is None or not account.unredeemed:
        raise UsageError("no voucher of this payment channel is worth more than was redeemed")
    client.redeem(key, account.terms, account.voucher)
    note = partial(note_redeemed, amount=account.voucher.amount)
    try:
        return books.paid.change(channel_id, note)
    except ShoalError as error:
        log.warning("%s was redeemed, and that is not noted: %s", channel_id.hex()[:16], error.message)
        return note(account)


def _check_domain(client: ChainClient, account: PayerAccount | PayeeAccount) -> None:
    ours, found = account.domain, client.deployment.escrow
    if ours != found:
        raise UsageError(
            f"the payment channel {account.channel_id.hex()} is of the contract {show_address(ours.contract)}"
            f" on chain {ours.chain_id}; chain.toml names {show_address(found.contract)}"
            f" on chain {found.chain_id}",
            check="use the chain.toml with which it was opened",
            next_command="shoal wallet channels",
        )


def _check_wallet(key: ChainKey, channel_id: bytes, owner: bytes, signer: bytes) -> None:
    if key.address not in (owner, signer):
        raise NotAllowed(
            f"the payment channel {channel_id.hex()} is of the wallet {show_address(owner)},"
            f" and this is {show_address(key.address)}",
            check=f"put the wallet.json of {show_address(owner)} back",
            next_command="shoal wallet show",
        )


def _open_to(
    client: ChainClient, books: PaymentBooks, key: ChainKey, payee: ChainAddress, node: PeerId
) -> PayerAccount | None:
    for channel_id in books.paying.channel_ids():
        try:
            account = books.paying.read(channel_id)
        except BadLedgerFile as error:
            log.warning("%s: it is passed over", error.message)
            continue
        terms = account.terms
        ours = account.domain == client.deployment.escrow and terms.payer == key.address
        theirs = terms.payee == payee and is_bound(terms, node)
        if ours and theirs and client.escrow_state(channel_id).closes_at is None:
            return account
    return None


def _begin(client: ChainClient, key: ChainKey, payee: ChainAddress, node: PeerId) -> PayerAccount:
    terms = PaymentTerms(
        payer=key.address,
        payer_signer=key.address,
        payee=payee,
        payee_signer=payee,
        salt=salt_for(node, secrets.token_bytes(WORD - BOUND)),
    )
    domain = client.deployment.escrow
    channel_id = terms.channel_id(domain)
    return PayerAccount(terms=terms, domain=domain, channel_id=channel_id, deposit=0, budget=0)
