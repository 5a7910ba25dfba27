"""What each caller has used, by day and model. Added up in memory, written every few seconds."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from shoal.errors import OutOfResources
from shoal.gateway.database.database import Database
from shoal.gateway.database.once import WriteNumber, Writer

WRITE_EVERY_S = 2.0
SHOWN_DAYS = 30
SHOWN_KEYS = 100
"""Of those who used the most, what is shown by day."""

log = logging.getLogger(__name__)


class Account(NamedTuple):
    """What use is added up by."""

    day: str
    """By UTC, for example ``2030-01-31``."""
    caller: str
    model: str


@dataclass(slots=True)
class Used:
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Usage:
    """Counts at once, writes later. As large as the callers and models of one day."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._unwritten: defaultdict[Account, Used] = defaultdict(Used)
        self._writer = Writer()
        self._writing = trio.Lock()
        self._tried: tuple[WriteNumber, dict[Account, Used]] | None = None
        """What may be written already: nobody has heard so. It is tried again as it is."""

    def count(
        self, caller: str, model: str, prompt_tokens: int, completion_tokens: int, requests: int = 1
    ) -> None:
        """One request has ended, well or not.

        Args:
            requests: 0 where the same request is going to be tried again.
        """
        if not (requests or prompt_tokens or completion_tokens):
            return
        used = self._unwritten[Account(time.strftime("%Y-%m-%d", time.gmtime()), caller, model)]
        used.requests += requests
        used.prompt_tokens += prompt_tokens
        used.completion_tokens += completion_tokens

    def by_key(self, days: Sequence[str], caller: str | None) -> dict[str, list[int]]:
        """Tokens read and written on each day, of those who used the most first; to be called on a thread.

        Args:
            days: in order.
            caller: of this caller alone; of :data:`SHOWN_KEYS` if ``None``.
        """
        place = {day: number for number, day in enumerate(days)}
        found: defaultdict[str, list[int]] = defaultdict(lambda: [0] * len(days))
        for account, used in report(self.database, since=days[0], caller=caller):
            if account.day in place:  # a day may have begun since
                found[account.caller][place[account.day]] += used.prompt_tokens + used.completion_tokens
        most = sorted(found.items(), key=lambda item: -sum(item[1]))
        return dict(most[:SHOWN_KEYS])

    async def run(self) -> None:
        """Write until cancelled, and once more then."""
        try:
            while True:
                await trio.sleep(WRITE_EVERY_S)
                await self._write()
        finally:
            with trio.CancelScope(shield=True):
                await self._write()

    async def _write(self) -> None:
        async with self._writing:
            while self._tried is not None or self._unwritten:
                if self._tried is None:
                    self._tried = self._writer.next(), dict(self._unwritten)
                    self._unwritten.clear()
                try:
                    await self.database.run(_add, self.database, *self._tried)
                except (
                    OutOfResources
                ) as error:  # a full disk must not end answers; the next round tries again
                    log.warning("usage is not written: %s", error.message)
                    return
                self._tried = None


def usage_days(now: float) -> list[str]:
    """The last :data:`SHOWN_DAYS` days by UTC, the oldest first.

    Args:
        now: seconds since 1970.
    """
    return [
        time.strftime("%Y-%m-%d", time.gmtime(now - back * 86_400)) for back in reversed(range(SHOWN_DAYS))
    ]


def report(database: Database, *, since: str = "", caller: str | None = None) -> list[tuple[Account, Used]]:
    """What was written, the newest day first.

    Args:
        since: from this day on, by UTC; from the beginning if empty.
        caller: of this caller alone; of all if ``None``.
    """
    if not database.exists:
        return []
    one, whose = ("", ()) if caller is None else ("AND caller = ? ", (caller,))
    with database.transaction() as found:
        rows = found.execute(
            "SELECT day, caller, model, requests, prompt_tokens, completion_tokens FROM usage "
            f"WHERE day >= ? {one}ORDER BY day DESC, caller, model",
            (since, *whose),
        ).fetchall()
    return [(Account(*row[:3]), Used(*row[3:])) for row in rows]


def _add(database: Database, number: WriteNumber, batch: dict[Account, Used]) -> None:
    used = sorted(
        batch.items(), key=lambda item: item[0]
    )  # in one order, or two gateways that write the same rows wait for each other
    with database.transaction() as changes:
        if not number.is_new(changes):
            return
        changes.executemany(
            "INSERT INTO usage (day, caller, model, requests, prompt_tokens, completion_tokens) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (day, caller, model) DO UPDATE SET "
            "requests = usage.requests + excluded.requests, "
            "prompt_tokens = usage.prompt_tokens + excluded.prompt_tokens, "
            "completion_tokens = usage.completion_tokens + excluded.completion_tokens",
            [(*account, u.requests, u.prompt_tokens, u.completion_tokens) for account, u in used],
        )
