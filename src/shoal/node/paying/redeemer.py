"""Has what a node was paid with paid out by the chain, without anybody's command. One payment channel after
another, as a wallet's transactions are numbered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import trio

from shoal.errors import ChainError, ShoalError
from shoal.ledger.vouchers.book import PaymentBook
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.vouchers.redeeming import REDEEM_GAS, RedeemReason, may_redeem, note_failed, redeem_reason
from shoal.ledger.vouchers.typed_data import ChainAddress, SigningDomain
from shoal.option_values import show_coins

LOOK_EVERY_S = 60.0
SAME_FOR_ALL = ("down", "other chain", "nonsense", "no contract", "poor", "dear")
"""What is no payment channel's own fault: with the others it would be the same now."""

log = logging.getLogger(__name__)

Got = TypeVar("Got")


class RedeemingChain(Protocol):
    """What redeems; to be called from a thread, as it waits for the chain."""

    def gas_price(self) -> int:
        """What a unit of gas costs now. Raises ChainError: the node is down."""
        ...

    def redeem(self, channel_id: bytes) -> PayeeAccount:
        """Have the newest voucher paid out, and note it. Raises ChainError: it was not, or nobody knows."""
        ...


class Redeemer:
    """See the module.

    Args:
        address: whose payment channels are redeemed: the wallet that ``chain`` sends from.
        at_least: how many times its gas a voucher has to be worth; at least 1.
        wall: seconds since the epoch, as the chain counts them.
    """

    def __init__(
        self,
        book: PaymentBook[PayeeAccount],
        chain: RedeemingChain,
        domain: SigningDomain,
        address: ChainAddress,
        at_least: int,
        wall: Callable[[], float],
    ) -> None:
        self._book = book
        self._chain = chain
        self._domain = domain
        self._address = address
        self._at_least = at_least
        self._wall = wall

    async def run(self, is_serving: Callable[[bytes], bool]) -> None:
        """Look again and again, until cancelled.

        Args:
            is_serving: whether a session is open that is paid for over a payment channel.
        """
        while True:
            await self.look(is_serving)
            await trio.sleep(LOOK_EVERY_S)

    async def look(self, is_serving: Callable[[bytes], bool]) -> int:
        """Redeem what is due. Returns over how many payment channels. What fails with one stops no other."""
        redeemed, cost = 0, None
        for account in await _in_thread(partial(self._candidates, self._wall())):
            try:
                if cost is None:
                    cost = REDEEM_GAS * await _in_thread(self._chain.gas_price)
                serving = is_serving(account.channel_id)
                reason = redeem_reason(account, cost, self._at_least, self._wall(), serving=serving)
                if reason is not None:
                    await _in_thread(partial(self._redeem, account, reason))
                    redeemed += 1
            except ChainError as error:
                await _in_thread(partial(self._note_failed, account, error, self._wall()))
                if error.reason in SAME_FOR_ALL:
                    break
            except ShoalError as error:  # the disk's, or its owner was faster
                log.warning("%s was not redeemed: %s", account.channel_id.hex()[:16], error.message)
        return redeemed

    def _redeem(self, account: PayeeAccount, reason: RedeemReason) -> None:
        after = self._chain.redeem(account.channel_id)
        got = show_coins(after.redeemed - account.redeemed)
        log.info("%s were redeemed over %s (%s)", got, account.channel_id.hex()[:16], reason)

    def _note_failed(self, account: PayeeAccount, error: ChainError, now: float) -> None:
        note, name = partial(note_failed, why=error.message, now=now), account.channel_id.hex()[:16]
        try:
            failed = self._book.change(account.channel_id, note).redeem_failed
        except ShoalError as unwritten:
            log.warning("%s was not redeemed: %s; not noted: %s", name, error.message, unwritten.message)
            return
        times = failed.times if failed else 0
        log.warning("%s was not redeemed, for the %d. time: %s", name, times, error.message)

    def _candidates(self, now: float) -> list[PayeeAccount]:
        """What there may be to redeem: first where the payer is closing, then what is worth most."""
        found: list[PayeeAccount] = []
        for channel_id in self._book.channel_ids():
            try:
                account = self._book.read(channel_id)
            except ShoalError as error:
                log.warning("%s: it is passed over", error.message)
                continue
            ours = account.domain == self._domain and account.terms.payee == self._address
            if ours and may_redeem(account, now):
                found.append(account)
        return sorted(found, key=lambda one: (one.closes_at is None, one.closes_at or 0, -one.unredeemed))


async def _in_thread(call: Callable[[], Got]) -> Got:
    return await trio.to_thread.run_sync(call, abandon_on_cancel=True)
