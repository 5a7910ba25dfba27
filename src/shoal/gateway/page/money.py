"""What this machine has earned and spent by vouchers, hour by hour, kept in the gateway's database.

A payment channel says only what it came to in all: what it has grown by since it was last seen was earned, or
spent, in the hour in which that is noticed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from shoal.errors import OutOfResources, ShoalError
from shoal.gateway.database.database import Database, Transaction

if TYPE_CHECKING:
    from shoal.ledger.vouchers.book import PaymentAccount, PaymentBook

HOUR_S = 3600
LOOK_EVERY_S = 300.0
KEPT_HOURS = 30 * 24

log = logging.getLogger(__name__)


class ChannelSums(NamedTuple):
    """What every payment channel of this machine has come to in all, in wei, by its name."""

    earned: Mapping[str, int]
    spent: Mapping[str, int]


class MoneyHour(NamedTuple):
    """In wei."""

    hour: int
    """Since 1970."""
    earned: int
    spent: int


class MoneyHistory:
    """Looks at the books every few minutes and keeps a month of what they have grown by, through restarts.

    Args:
        look: reads the books, on a thread.
    """

    def __init__(
        self, database: Database, look: Callable[[], ChannelSums], clock: Callable[[], float] = time.time
    ) -> None:
        self.database = database
        self._look = look
        self._clock = clock

    async def run(self) -> None:
        """Note what has changed, until cancelled."""
        while True:
            try:
                await self.database.run(self.note)
            except OutOfResources as error:  # it counts in the next hour that is written
                log.warning("what was earned and spent is not written: %s", error.message)
            await trio.sleep(LOOK_EVERY_S)

    def note(self) -> None:
        """Add to this hour what was earned and spent since the last time; to be called on a thread.

        Raises:
            OutOfResources: the database cannot be written.
        """
        sums, hour = self._look(), int(self._clock() // HOUR_S)
        with self.database.transaction(lock="money") as changes:
            # Of what was there before anything was ever noted, nobody knows in which hour it came.
            first = not changes.execute("SELECT hour FROM money LIMIT 1").fetchall()
            earned, spent = _growth(changes, "paid", sums.earned), _growth(changes, "pays", sums.spent)
            if first:
                earned = spent = 0
            for before in changes.execute(
                "SELECT earned, spent FROM money WHERE hour = ?", (hour,)
            ).fetchall():
                earned, spent = earned + int(before[0]), spent + int(before[1])
            changes.execute("DELETE FROM money WHERE hour <= ?", (hour - KEPT_HOURS,))
            changes.execute(
                "INSERT INTO money (hour, earned, spent) VALUES (?, ?, ?) ON CONFLICT (hour) DO UPDATE SET "
                "earned = excluded.earned, spent = excluded.spent",
                (hour, str(earned), str(spent)),
            )

    def shown(self) -> list[MoneyHour]:
        """The last month, the oldest hour first; to be called on a thread.

        Raises:
            OutOfResources: the database cannot be read.
        """
        oldest = int(self._clock() // HOUR_S) - KEPT_HOURS
        with self.database.transaction() as found:
            rows = found.execute(
                "SELECT hour, earned, spent FROM money WHERE hour > ? ORDER BY hour", (oldest,)
            ).fetchall()
        return [MoneyHour(hour, int(earned), int(spent)) for hour, earned, spent in rows]


def _growth(changes: Transaction, side: str, sums: Mapping[str, int]) -> int:
    """By how much payment channels have grown that a side has; from now on they are seen as they are."""
    grown = 0
    for name, amount in sums.items():
        channel = f"{side}:{name}"
        rows = changes.execute("SELECT amount FROM money_seen WHERE channel = ?", (channel,)).fetchall()
        before = int(rows[0][0]) if rows else 0
        if amount > before:
            grown += amount - before
            changes.execute(
                "INSERT INTO money_seen (channel, amount) VALUES (?, ?) ON CONFLICT (channel) DO UPDATE SET "
                "amount = excluded.amount",
                (channel, str(amount)),
            )
    return grown


def read_sums(payments: Path) -> ChannelSums:
    """What the books in a folder say; nothing where nobody has paid. What is damaged is passed over."""
    if not payments.exists():
        return ChannelSums({}, {})
    from shoal.ledger.settling import PaymentBooks  # noqa: PLC0415  of the ledger, which most do without

    books = PaymentBooks.below(payments)
    return ChannelSums(
        _sums(books.paid, lambda account: account.paid), _sums(books.paying, lambda account: account.signed)
    )


def _sums(book: PaymentBook[PaymentAccount], sum_of: Callable[[PaymentAccount], int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for channel_id in book.channel_ids():
        try:
            found[channel_id.hex()] = sum_of(book.read(channel_id))
        except ShoalError as error:
            log.warning("%s: it is passed over", error.message)
    return found
