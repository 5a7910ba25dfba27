"""What callers have left of their limits where several gateways answer them: counted in their database.

A request is checked and counted in one transaction, under a lock of its caller's, by the database's clock; so
limits are exact, whichever gateways the requests come to. Who has no limits costs the database nothing.

What a request takes of its caller's concurrency is a lease. It holds for as long as its gateway says every
:data:`BEAT_S` that it lives: when that is killed, its leases are void :data:`ALIVE_S` later.
"""

from __future__ import annotations

import logging
import secrets
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio

from shoal.errors import OutOfResources
from shoal.gateway.access.allowance import Allowance, Bucket, ConcurrencyReached
from shoal.gateway.access.keys import Caller
from shoal.gateway.database.database import Database, Transaction

BEAT_S = 1.5
ALIVE_S = 6.0
FREED_WITHIN_S = 0.25
"""How long a request waits for a place of its caller's: who has just got an answer may ask again, at another
gateway, before the first has said that it is done."""
LOOK_EVERY_S = 0.05

log = logging.getLogger(__name__)


class SharedAllowances:
    """Counts of all gateways that have this database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._gateway = secrets.token_hex(8)
        self._over: set[str] = set()
        """Leases that are over and could not be given back yet."""
        self._owed: defaultdict[Caller, int] = defaultdict(int)
        """Tokens that could not be charged yet."""

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
                    await self._database.run(self._leave)
                except OutOfResources as error:  # the leases end by themselves
                    log.warning("leases are not given back: %s", error.message)

    @asynccontextmanager
    async def admitted(self, caller: Caller) -> AsyncGenerator[None]:
        """As :meth:`Allowances.admitted`."""
        limits = caller.limits
        if not (limits.requests_per_minute or limits.tokens_per_minute or limits.concurrency):
            yield
            return
        lease, sent = secrets.token_hex(16), set[str]()
        try:
            await self._take_soon(caller, lease, sent)
        except OutOfResources:
            self._over |= sent  # it may be there: nobody has heard the server's answer
            raise
        try:
            yield
        finally:
            if limits.concurrency:
                with trio.CancelScope(shield=True):
                    await self._give_back(lease)

    async def charge(self, caller: Caller, tokens: int) -> None:
        """As :meth:`Allowances.charge`. What cannot be written now is written with a later beat."""
        if not caller.limits.tokens_per_minute or not tokens:
            return
        with trio.CancelScope(shield=True):
            try:
                await self._database.run(self._charge, {caller: tokens})
            except OutOfResources as error:
                log.warning("tokens are charged later: %s", error.message)
                self._owed[caller] += tokens

    async def _take_soon(self, caller: Caller, lease: str, sent: set[str]) -> None:
        until = trio.current_time() + FREED_WITHIN_S
        while True:
            try:
                await self._database.run(self._take, caller, lease, sent)
            except ConcurrencyReached:
                if trio.current_time() >= until:
                    raise
            else:
                return
            await trio.sleep(LOOK_EVERY_S)

    async def _give_back(self, lease: str) -> None:
        try:
            await self._database.run(self._end_leases, {lease})
        except OutOfResources as error:
            log.warning("a lease is given back later: %s", error.message)
            self._over.add(lease)

    async def _beat(self) -> None:
        over, owed = set(self._over), dict(self._owed)
        await self._database.run(self._say_alive)
        if owed:
            await self._database.run(self._charge, owed)
            for caller, tokens in owed.items():
                self._owed[caller] -= tokens
                if not self._owed[caller]:
                    del self._owed[caller]
        if over:
            await self._database.run(self._end_leases, over)
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

    def _charge(self, used: dict[Caller, int]) -> None:
        for caller, tokens in used.items():
            with self._database.transaction(_lock(caller)) as database:
                now = database.now()
                allowance = _read(database, caller, now)
                if allowance.tokens is not None:
                    allowance.tokens.take(tokens, now)
                    _write(database, caller, allowance, now)

    def _end_leases(self, leases: set[str]) -> None:
        with self._database.transaction() as database:
            database.executemany("DELETE FROM leases WHERE id = ?", [(id,) for id in sorted(leases)])

    def _say_alive(self) -> None:
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
