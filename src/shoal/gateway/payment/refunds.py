"""How often a gateway pays the gas of what its payers have back. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from math import inf

from shoal.ledger.vouchers.book import MAX_ACCOUNTS
from shoal.ledger.vouchers.payee import PayeeAccount
from shoal.ledger.x402.refusals import REFUND_LATER, PaymentNotTaken

HOUR_S = 3600.0
UNEARNED = 16
"""In an hour, over all payment channels that brought in less than a least deposit since their last refund.
Else a deposit, a short request and a refund, again and again, would empty the wallet."""


class Refunds:
    """Counts, in memory, what was given back."""

    def __init__(self) -> None:
        self._last: OrderedDict[bytes, tuple[float, int]] = OrderedDict()
        """When each payment channel had its last refund, and what was served over it by then."""
        self._unearned: deque[float] = deque(maxlen=UNEARNED)

    def take(self, account: PayeeAccount, least_deposit: int, now: float) -> None:
        """A payer is about to be given back what is left.

        Args:
            least_deposit: for what has brought in so much, a refund is always sent.
            now: in seconds.

        Raises:
            PaymentNotTaken: not yet.
        """
        at, served = self._last.get(account.channel_id, (-inf, 0))
        if account.owed - served < least_deposit:
            full = len(self._unearned) == UNEARNED and now - self._unearned[0] < HOUR_S
            if full or now - at < HOUR_S:
                raise PaymentNotTaken(
                    f"too little was bought for a refund now: {UNEARNED} such are sent in an hour, and of one"
                    " payment channel one",
                    reason=REFUND_LATER,
                    check="ask again in an hour, or close the payment channel yourself",
                )
            self._unearned.append(now)
        self._last[account.channel_id] = (now, account.owed)
        self._last.move_to_end(account.channel_id)
        if len(self._last) > MAX_ACCOUNTS:
            self._last.popitem(last=False)
