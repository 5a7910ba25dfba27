"""What both sides have on their disks, what the chain has, and what was computed: who has lost what.

Pure, but for :func:`read_books`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shoal.ledger.settling import PaymentBooks
from shoal.ledger.vouchers.payee import Escrowed
from shoal.ledger.vouchers.typed_data import ChainAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class HopBooks:
    """One hop and its client, at one moment, over all their payment channels. Amounts are in wei."""

    node: str
    window: int
    """What the hop serves before it is paid."""
    work: int
    """What it has computed, by its own figures, at its price: no account says this."""
    owed: int
    """By its own account on the disk."""
    paid: int
    """What its newest vouchers are worth."""
    signed: int
    """What its client's newest are."""
    deposit: int
    """What the chain has in escrow."""
    redeemed: int
    """What the chain has paid out of that."""

    @property
    def unpaid(self) -> int:
        """What it has computed and has no voucher for; below 0: it was paid ahead."""
        return self.work - self.paid


@dataclass(frozen=True, slots=True)
class RunLosses:
    """What one run has cost, in windows of the hop that it cost most, or whose client."""

    hop: float
    """Of what hops computed meanwhile, they have no voucher for so much more than before."""
    client: float
    """So much more than was computed for it, in all, has a client signed for."""


def losses(before: Sequence[HopBooks], after: Sequence[HopBooks]) -> RunLosses:
    """Between two moments at which nothing is under way."""
    hops = [(new.unpaid - old.unpaid) / new.window for old, new in zip(before, after, strict=True)]
    return RunLosses(max(0.0, *hops), max(0.0, *((one.signed - one.work) / one.window for one in after)))


def judge_books(before: Sequence[HopBooks], after: Sequence[HopBooks]) -> list[str]:
    """What does not hold after a run in which one was killed: who lost more than a window, and what does not
    add up."""
    found: list[str] = []
    for old, new in zip(before, after, strict=True):
        if new.unpaid - old.unpaid > new.window:
            more_unpaid = new.unpaid - old.unpaid
            found.append(f"{new.node} has {more_unpaid} more unpaid than before; its window is {new.window}")
        if new.signed - new.work > new.window:
            found.append(
                f"{new.node}'s client has signed for {new.signed}, and {new.work} were computed for it"
            )
        order = (
            ("redeemed", new.redeemed),
            ("paid", new.paid),
            ("signed", new.signed),
            ("in escrow", new.deposit),
        )
        for (less, small), (more, large) in pairwise(order):
            if small > large:
                found.append(f"{new.node}: {small} are {less}, and {large} {more}")
        if new.paid < old.paid or new.signed < old.signed or new.redeemed < old.redeemed:
            found.append(f"{new.node}: a voucher that was there is gone")
    return found


@dataclass(frozen=True, slots=True)
class Purse:
    """A wallet on the chain, in wei."""

    given: int
    """At first."""
    now: int
    fees: int
    """What its transactions have cost."""


def judge_coins(books: Sequence[HopBooks], hops: Mapping[str, Purse], client: Purse) -> list[str]:
    """What does not add up once all is redeemed: vouchers, escrow and wallets, to the last wei.

    Args:
        hops: their wallets by name.
    """
    found: list[str] = []
    for one in books:
        purse = hops[one.node]
        if one.redeemed != one.paid:
            found.append(f"{one.node} has vouchers for {one.paid}, and redeemed {one.redeemed}")
        if purse.now != purse.given + one.redeemed - purse.fees:
            found.append(f"{one.node} has redeemed {one.redeemed}, and its wallet is {purse}")
    deposit = sum(one.deposit for one in books)
    if client.now != client.given - deposit - client.fees:
        found.append(f"the client has paid in {deposit}, and its wallet is {client}")
    return found


def read_books(
    node: str,
    window: int,
    work: int,
    *,
    hop: Path,
    client: Path,
    payee: ChainAddress,
    escrow: Callable[[bytes], Escrowed],
) -> HopBooks:
    """The books of a hop and of its client as they are on the disk, and the chain's. It waits for both.

    Args:
        hop, client: their folders ``payments``.
        payee: the hop's wallet.
        escrow: asks the chain.

    Raises:
        BadLedgerFile: an account is damaged, which no kill may do.
        ChainError: the chain is away.
    """
    paid = PaymentBooks.below(hop).paid
    paying = PaymentBooks.below(client).paying
    theirs = [paid.read(channel_id) for channel_id in paid.channel_ids()]
    ours = [paying.read(channel_id) for channel_id in paying.channel_ids()]
    ours = [account for account in ours if account.terms.payee == payee]
    states = [escrow(account.channel_id) for account in ours]
    return HopBooks(
        node=node,
        window=window,
        work=work,
        owed=sum(account.owed for account in theirs),
        paid=sum(account.paid for account in theirs),
        signed=sum(account.signed for account in ours),
        deposit=sum(state.deposit for state in states),
        redeemed=sum(state.redeemed for state in states),
    )
