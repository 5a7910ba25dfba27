"""What callers have left of their limits where several gateways answer them: counted in their database.

A request is checked and counted in one transaction, under a lock of its caller's, by the database's clock; so
limits are exact, whichever gateways the requests come to. Who has no limits costs the database nothing.

What a request takes of its caller's concurrency is a lease. It holds for as long as its gateway says every
:data:`BEAT_S` that it lives: when that is killed, its leases are void :data:`ALIVE_S` later. One that was
taken for dead and lives says again what it has going.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from shoal.errors import OutOfResources
from shoal.gateway.access.allowance import Allowance, Bucket
from shoal.gateway.access.debt import Debt
from shoal.gateway.access.keys import Caller
from shoal.gateway.access.refusals import Refusals
from shoal.gateway.database.database import Database, Transaction
from shoal.gateway.database.once import WriteNumber

BEAT_S = 1.5
ALIVE_S = 20.0
"""More than a beat and all that it may wait for: a turn, a connection and a statement."""

log = logging.getLogger(__name__)


class SharedAllowances:
    """Counts of all gateways that have this database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gateway = secrets.token_hex(8)
        self._over: set[str] = set()
        """Leases that are over and could not be given back yet."""
        self._running: dict[str, tuple[str, bool]] = {}
        """Leases of requests that are answered now, and whose they are."""
        self._debts: dict[tuple[str, bool], Debt] = {}
        """What each caller owes: nothing, but for moments and while the database is away."""
        self._refusals = Refusals()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say that this gateway lives until cancelled.

        Raises:
            OutOfResources: it could not be said at the beginning.
        """
        await self._beat()
        task_status.started()
        try:
            while True:
                await trio.sleep(BEAT_S)
                try:
                    await self._beat()
                except OutOfResources as error:  # callers with limits are refused until it is back
                    log.warning("limits cannot be counted: %s", error.message)
        finally:
            with trio.CancelScope(shield=True):
                try:
                    for debt in list(self._debts.values()):
                        await self._settle(debt)
                    await self._database.run_short(self._leave)
                except OutOfResources as error:  # the leases end by themselves
                    log.warning("tokens are not charged, or leases not given back: %s", error.message)

    @asynccontextmanager
    async def admitted(self, caller: Caller) -> AsyncGenerator[None]:
        """As :meth:`Allowances.admitted`."""
        limits = caller.limits
        if not (limits.requests_per_minute or limits.tokens_per_minute or limits.concurrency):
            yield
            return
        lease, sent = secrets.token_hex(16), set[str]()

        async def take() -> None:
            await self._database.run_short(self._take, caller, lease, sent)

        try:
            await self._refusals.ask(caller, take)
        except BaseException:
            self._over |= sent  # it may be there: nobody has heard the server's answer
            raise
        if limits.concurrency:
            self._running[lease] = (caller.id, caller.background)
        try:
            yield
        finally:
            if self._running.pop(lease, None):
                with trio.CancelScope(shield=True):
                    await self._give_back(lease)

    async def charge(self, caller: Caller, tokens: int) -> None:
        """As :meth:`Allowances.charge`. What cannot be written now is written with a later beat."""
        if not caller.limits.tokens_per_minute or not tokens:
            return
        debt = self._debts.setdefault((caller.id, caller.background), Debt(caller))
        debt.owed += tokens
        with trio.CancelScope(shield=True):
            try:
                await self._settle(debt)
            except OutOfResources as error:
                log.warning("tokens are charged later: %s", error.message)

    async def _settle(self, debt: Debt) -> None:
        """Charge what a caller owes, one write after the other; who comes meanwhile leaves it to that."""
        if debt.settling:
            return
        debt.settling = True
        try:
            while (due := debt.due()) is not None:
                await self._database.run_short(self._charge, debt.caller, *due)
                debt.paid()
        finally:
            debt.settling = False

    async def _give_back(self, lease: str) -> None:
        try:
            await self._database.run_short(self._end_leases, {lease})
        except OutOfResources as error:
            log.warning("a lease is given back later: %s", error.message)
            self._over.add(lease)

    async def _beat(self) -> None:
        running = dict(self._running)
        try:
            await self._database.run_short(self._say_alive, running)
        finally:
            self._over |= running.keys() - self._running.keys()  # given back, and written again maybe
        until = trio.current_time() + BEAT_S  # what is left then waits for the next beat, which must not
        for debt in list(self._debts.values()):
            if trio.current_time() < until:
                await self._settle(debt)
        if over := set(self._over):
            await self._database.run_short(self._end_leases, over)
            self._over -= over

    def _take(self, caller: Caller, lease: str, sent: set[str]) -> None:
        limits, whose = caller.limits, (caller.id, caller.background)
        with self._database.transaction(_lock(caller)) as database:
            now, open_now = database.now(), 0
            if limits.concurrency:
                (open_now,) = database.execute(
                    "SELECT count(*) FROM leases WHERE caller = ? AND background = ? "
                    "AND gateway IN (SELECT id FROM gateways WHERE alive_until > ?)",
                    (*whose, now),
                ).fetchone()
            allowance = _read(database, caller, now)
            allowance.take_request(limits, open_now, now)
            _write(database, caller, allowance, now)
            if limits.concurrency:
                sent.add(lease)
                database.execute(
                    "INSERT INTO leases (id, caller, background, gateway) VALUES (?, ?, ?, ?)",
                    (lease, *whose, self._gateway),
                )

    def _charge(self, caller: Caller, number: WriteNumber, tokens: int) -> None:
        with self._database.transaction(_lock(caller)) as database:
            now = database.now()
            allowance = _read(database, caller, now)
            if number.is_new(database) and allowance.tokens is not None:
                allowance.tokens.take(tokens, now)
                _write(database, caller, allowance, now)

    def _end_leases(self, leases: set[str]) -> None:
        with self._database.transaction() as database:
            database.executemany("DELETE FROM leases WHERE id = ?", [(id,) for id in sorted(leases)])

    def _say_alive(self, running: dict[str, tuple[str, bool]]) -> None:
        with self._database.transaction("gateways") as database:
            now = database.now()
            database.execute(
                "INSERT INTO gateways (id, alive_until) VALUES (?, ?) "
                "ON CONFLICT (id) DO UPDATE SET alive_until = excluded.alive_until",
                (self._gateway, now + ALIVE_S),
            )
            gone = database.execute("SELECT id FROM gateways WHERE alive_until <= ?", (now,)).fetchall()
            for id in gone:
                _forget(database, id)
            database.execute("DELETE FROM leases WHERE gateway NOT IN (SELECT id FROM gateways)")
            # Others may have taken this gateway for dead meanwhile, and deleted what runs.
            database.executemany(
                "INSERT INTO leases (id, caller, background, gateway) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (id) DO NOTHING",
                [(lease, *whose, self._gateway) for lease, whose in sorted(running.items())],
            )

    def _leave(self) -> None:
        with self._database.transaction("gateways") as database:
            _forget(database, (self._gateway,))


def _forget(database: Transaction, gateway: tuple[str]) -> None:
    database.execute("DELETE FROM leases WHERE gateway = ?", gateway)
    database.execute("DELETE FROM gateways WHERE id = ?", gateway)


def _read(database: Transaction, caller: Caller, now: float) -> Allowance:
    found = database.execute(
        "SELECT requests, tokens, at FROM allowances WHERE caller = ? AND background = ?",
        (caller.id, caller.background),
    ).fetchone()
    if found is None:
        return Allowance.full(caller.limits, now)
    (requests, tokens, at), limits = found, caller.limits
    return Allowance(
        Bucket(limits.requests_per_minute, requests, at) if limits.requests_per_minute else None,
        Bucket(limits.tokens_per_minute, tokens, at) if limits.tokens_per_minute else None,
    )


def _write(database: Transaction, caller: Caller, allowance: Allowance, now: float) -> None:
    levels = [bucket.level_at(now) if bucket else 0.0 for bucket in (allowance.requests, allowance.tokens)]
    database.execute(
        "INSERT INTO allowances (caller, background, requests, tokens, at) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (caller, background) DO UPDATE SET requests = excluded.requests, "
        "tokens = excluded.tokens, at = excluded.at",
        (caller.id, caller.background, *levels, now),
    )


def _lock(caller: Caller) -> str:
    """Held by who counts what a caller asks for."""
    return f"limits of {caller.id}"
