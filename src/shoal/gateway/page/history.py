"""The last day of the swarm as its gateways saw it: a moment a minute, kept in their database."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

import trio

from shoal.errors import OutOfResources
from shoal.gateway.database.database import Database

MINUTE_S = 60
KEPT_MINUTES = 24 * 60

log = logging.getLogger(__name__)


class Sight(NamedTuple):
    """What can be seen of the swarm at once."""

    peers: int
    """Peers that serve something."""
    covered: float
    """Share of the default model's blocks that somebody serves, or the gateway runs itself."""
    tokens: int
    """Tokens of all answers since the gateway began."""


class Moment(NamedTuple):
    """One minute."""

    minute: int
    """Since 1970."""
    peers: int
    covered: float
    tokens: int
    """Tokens of answers within this minute."""


class SwarmHistory:
    """Looks once a minute and keeps a day of it, through restarts."""

    def __init__(
        self, database: Database, look: Callable[[], Sight | None], clock: Callable[[], float] = time.time
    ) -> None:
        self.database = database
        self._look = look
        self._clock = clock
        self._counted = 0
        """Tokens of moments that are written."""

    async def run(self) -> None:
        """Keep a moment a minute until cancelled."""
        while True:
            await trio.sleep(MINUTE_S - self._clock() % MINUTE_S)
            await self.note()

    async def note(self) -> None:
        """Write the minute that is now, if anything is known of it; what is older than a day goes.

        A moment that cannot be written is lost: a full disk must not end answers.
        """
        seen = self._look()
        if seen is None:
            return
        try:
            moment = Moment(self._minute(), seen.peers, seen.covered, seen.tokens - self._counted)
            await self.database.run(_write, self.database, moment)
            self._counted = seen.tokens
        except OutOfResources as error:  # its tokens count in the next one
            log.warning("a minute of the swarm's history is not written: %s", error.message)

    def shown(self) -> list[Moment]:
        """The last day, the oldest first; to be called on a thread.

        Raises:
            OutOfResources: the database cannot be read.
        """
        with self.database.transaction() as found:
            rows = found.execute(
                "SELECT minute, peers, covered, tokens FROM history WHERE minute > ? ORDER BY minute",
                (self._minute() - KEPT_MINUTES,),
            ).fetchall()
        return [Moment(*row) for row in rows]

    def _minute(self) -> int:
        return int(self._clock() // MINUTE_S)


def _write(database: Database, moment: Moment) -> None:
    with database.transaction() as changes:
        changes.execute("DELETE FROM history WHERE minute <= ?", (moment.minute - KEPT_MINUTES,))
        changes.execute(
            "INSERT INTO history (minute, peers, covered, tokens) VALUES (?, ?, ?, ?) "
            "ON CONFLICT (minute) DO UPDATE SET peers = excluded.peers, "
            "covered = excluded.covered, tokens = history.tokens + excluded.tokens",
            moment,
        )
