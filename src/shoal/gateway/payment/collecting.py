"""Has what was served paid out, in time: when it is worth a transaction, and when the payer is closing."""

from __future__ import annotations

import logging
from functools import partial

import trio

from shoal.errors import ChainError, OutOfResources
from shoal.gateway.errors import LimitReached
from shoal.gateway.payment.till import Till
from shoal.ledger.vouchers.payee import PayeeAccount

LOOK_EVERY_S = 60.0

log = logging.getLogger(__name__)


def claim_due(account: PayeeAccount, worth: int) -> bool:
    """Whether to claim now. Pure.

    Args:
        worth: what is due at least, where nothing presses.
    """
    due = min(account.owed, account.paid) - account.redeemed
    return due > 0 and (account.closes_at is not None or due >= worth)


class Collector:
    """Looks at each payment channel, one after another. One in which nothing is left is kept no more."""

    def __init__(self, till: Till) -> None:
        self._till = till

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.collect(self._till.offer.least_deposit)
            await trio.sleep(LOOK_EVERY_S)

    async def collect(self, worth: int) -> int:
        """Look once at all, and claim where it is due. Returns how many were claimed.

        Args:
            worth: what is due at least, where nothing presses.
        """
        claimed = 0
        for channel_id in await trio.to_thread.run_sync(self._till.book.channel_ids):
            try:
                claimed += await self._look(channel_id, worth)
            except (ChainError, OutOfResources, LimitReached) as error:
                log.warning("payment channel %s: %s", channel_id.hex()[:16], error.message)
        return claimed

    async def _look(self, channel_id: bytes, worth: int) -> bool:
        account = await self._till.observe(channel_id)
        if account.deposit <= account.redeemed:
            await self._till.forget_empty(channel_id)
            return False
        if not claim_due(account, worth):
            return False
        # However many payers wait: what is claimed too late is lost.
        return await self._till.chain.send(partial(self._claim, channel_id, worth), "gateway")

    def _claim(self, channel_id: bytes, worth: int) -> bool:
        till = self._till
        account = till.book.read(channel_id)
        if not claim_due(account, worth):  # its payer has had a refund meanwhile
            return False
        till.client.claim(till.key, account)
        till.refresh(account)
        return True
