"""What the chain says is in escrow, beside what a node keeps: asked in threads, so many at a time."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol

import trio

from shoal.errors import PaymentRequired
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.payee import MICRO, Escrowed, PayeeAccount, note_escrow
from shoal.ledger.vouchers.typed_data import SigningDomain
from shoal.ledger.vouchers.voucher import PaymentTerms
from shoal.option_values import show_coins

CHAIN_WITHIN_S = 8.0
ASKING = 4
"""Questions at a time for payment channels that are known here, and as many for others: whoever shows ever
new ones keeps out nobody who pays."""
POOR_S = 3.0
"""How long a payment channel in which too little was is not looked at again."""
MAX_POOR = 1024
"""Of those; the oldest is forgotten."""


class EscrowReader(Protocol):
    """Asks the chain's node; to be called from a thread."""

    def escrow_state(self, channel_id: bytes) -> Escrowed:
        """What is in escrow. Raises ChainError: nobody can tell."""
        ...


class EscrowWatch:
    """Brings accounts up to what the chain says."""

    def __init__(self, book: PaymentBook[PayeeAccount], escrow: EscrowReader, domain: SigningDomain) -> None:
        self._book = book
        self._escrow = escrow
        self._domain = domain
        # A place is free again when its thread has ended, also where nobody waits for that any more.
        self._known, self._new = trio.CapacityLimiter(ASKING), trio.CapacityLimiter(ASKING)
        self._poor: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """Until when, of trio's clock, so little is believed to be left."""

    async def look(
        self, channel_id: bytes, terms: PaymentTerms, least: int = 1, *, known: bool = True
    ) -> PayeeAccount:
        """The account as it is kept and as the chain has it; a new one where ``least`` are in escrow.

        Args:
            known: whether sessions were paid for over it since this node began.

        Raises:
            PaymentRequired: too little is in escrow, or the chain's node is too slow.
            ChainError: it is away.
            Busy, BadLedgerFile, OutOfResources: the account cannot be kept.
        """
        until, left = self._poor.get(channel_id, (0.0, 0))
        if not known and left < least and trio.current_time() < until:
            raise _too_little(left, least)

        def ask() -> PayeeAccount | int:
            return self._seen(channel_id, terms, least)

        limiter = self._known if known else self._new
        with trio.move_on_after(CHAIN_WITHIN_S):
            seen = await trio.to_thread.run_sync(ask, abandon_on_cancel=True, limiter=limiter)
            if isinstance(seen, PayeeAccount):
                self._poor.pop(channel_id, None)
                return seen
            self._poor[channel_id] = (trio.current_time() + POOR_S, seen)
            self._poor.move_to_end(channel_id)
            if len(self._poor) > MAX_POOR:
                self._poor.popitem(last=False)
            raise _too_little(seen, least)
        raise PaymentRequired("the chain's node did not tell in time what is in escrow", reason="unpaid")

    def _seen(self, channel_id: bytes, terms: PaymentTerms, least: int) -> PayeeAccount | int:
        """The account; or what is left, where that is too little to begin one."""
        state = self._escrow.escrow_state(channel_id)
        if channel_id in self._book:
            return self._book.change(channel_id, lambda kept: note_escrow(kept, state))
        left = state.deposit - state.redeemed
        if left < least:
            return left
        # It may have been kept before: what the chain has paid out was served, and pays for nothing more.
        began = PayeeAccount(
            terms=terms,
            domain=self._domain,
            channel_id=channel_id,
            deposit=0,
            window=1,
            owed_micro=state.redeemed * MICRO,
        )
        account = note_escrow(began, state)
        self._book.add(account)
        return account


def _too_little(left: int, least: int) -> PaymentRequired:
    return PaymentRequired(
        f"{show_coins(left)} are in escrow in this payment channel; this node takes up none with less than"
        f" {show_coins(least)}",
        reason="over deposit",
        check="add to the payment channel, or set a larger pay-budget",
        next_command="shoal wallet fund",
    )
