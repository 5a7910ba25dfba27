"""What machines whose gateways share a database have earned and spent by hops' vouchers, hour by hour.

A payment channel says only what it came to in all: what it has grown by since it was last seen was earned, or
spent, in the hour in which that is noticed. What gateways are paid over x402 is not in it.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from shoal.errors import BadLedgerFile, OutOfResources, ShoalError
from shoal.gateway.database.database import Database, Transaction
from shoal.whole_file import write_whole

if TYPE_CHECKING:
    from shoal.ledger.vouchers.book import PaymentAccount, PaymentBook

HOUR_S = 3600
LOOK_EVERY_S = 300.0
KEPT_HOURS = 30 * 24
KEPT_GONE = 4096
"""Payment channels of one machine that are gone and still known, as a payer may fill an empty one again."""
_NAME = re.compile("[0-9a-f]{32}")

log = logging.getLogger(__name__)


class ChannelSums(NamedTuple):
    """What every payment channel of this machine has come to in all, in wei, by its name; ``None``: it cannot
    be read now."""

    books: str
    """The name of this machine's books, which no other machine has."""
    earned: Mapping[str, int | None]
    spent: Mapping[str, int | None]


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
            except ShoalError as error:  # it counts in the next hour that is written
                log.warning("what was earned and spent is not written: %s", error.message)
            await trio.sleep(LOOK_EVERY_S)

    def note(self) -> None:
        """Add to this hour what was earned and spent since the last time; to be called on a thread.

        Raises:
            OutOfResources: the database cannot be written.
            ShoalError: what :func:`read_sums` raises.
        """
        sums, hour = self._look(), int(self._clock() // HOUR_S)
        with self.database.transaction(lock="money") as changes:
            earned, spent = _growth(changes, sums)
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


def _growth(changes: Transaction, sums: ChannelSums) -> tuple[int, int]:
    """By how much a machine's payment channels have grown, of those over which it is paid and of those over
    which it pays; from now on they are seen as they are."""
    rows = changes.execute(
        "SELECT channel, amount FROM money_seen WHERE channel LIKE ?", (f"{sums.books}:%",)
    ).fetchall()
    seen = {channel: int(amount) for channel, amount in rows}
    began = f"{sums.books}:began"
    # Of what was there before this machine was ever looked at, nobody knows in which hour it came.
    first = seen.pop(began, None) is None
    changed = [(began, "0")] if first else []
    grown: list[int] = []
    for side, channels in (("paid", sums.earned), ("pays", sums.spent)):
        grown.append(0)
        for name, amount in channels.items():
            channel = f"{sums.books}:{side}:{name}"
            before = seen.pop(channel, 0)
            if amount is not None and amount > before:
                grown[-1] += amount - before
                changed.append((channel, str(amount)))
    if changed:
        changes.executemany(
            "INSERT INTO money_seen (channel, amount) VALUES (?, ?) ON CONFLICT (channel) DO UPDATE SET "
            "amount = excluded.amount",
            changed,
        )
    # What is left was not met: the books have it no more. Those that came to least are forgotten first.
    gone = sorted(seen, key=lambda channel: seen[channel], reverse=True)
    if over := gone[KEPT_GONE:]:
        changes.executemany("DELETE FROM money_seen WHERE channel = ?", [(channel,) for channel in over])
    earned, spent = grown
    return (0, 0) if first else (earned, spent)


def read_sums(payments: Path) -> ChannelSums:
    """What the books in a folder say; nothing where nobody has paid. What is damaged is passed over.

    Raises:
        OutOfResources: the folder cannot be read, or not be given a name.
        BadLedgerFile: its name is damaged.
    """
    name = _books_name(payments)
    if not any((payments / side).exists() for side in ("paid", "paying")):
        return ChannelSums(name, {}, {})
    from shoal.ledger.settling import PaymentBooks  # noqa: PLC0415  of the ledger, which most do without

    books = PaymentBooks.below(payments)
    return ChannelSums(
        name,
        _sums(books.paid, lambda account: account.paid),
        _sums(books.paying, lambda account: account.signed),
    )


def _books_name(payments: Path) -> str:
    """The name of the books in a folder, made with the first look. A gateway's peer id lasts for one run."""
    path = payments / "books.name"
    try:
        if not path.exists():
            with suppress(FileExistsError):
                write_whole(path, secrets.token_hex(16).encode(), replace=False)
        name = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise OutOfResources(
            f"{path}: {error.strerror}", check="check that this user may read and write it"
        ) from error
    if not _NAME.fullmatch(name):
        raise BadLedgerFile(f"{path} is damaged", check="move it away: another one is then made")
    return name


def _sums(
    book: PaymentBook[PaymentAccount], sum_of: Callable[[PaymentAccount], int]
) -> dict[str, int | None]:
    found: dict[str, int | None] = {}
    for channel_id in book.channel_ids():
        try:
            found[channel_id.hex()] = sum_of(book.read(channel_id))
        except ShoalError as error:
            found[channel_id.hex()] = None
            log.warning("%s: it is passed over", error.message)
    return found
