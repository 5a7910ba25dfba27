"""A PostgreSQL server, which gateways on several machines share.

A few connections are kept and used in turn. Every wait for the server has an end: for a place, for a new
connection, and for each statement. A connection that has failed is closed, and the next who needs one makes
it anew; so a server that was away is used again as soon as it is back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import trio

from shoal.errors import IncompatibleLibrary
from shoal.gateway.database.database import Database, Rows, RunArguments, RunResult, Transaction
from shoal.gateway.database.schema import LOCK, bring_up_to_date, is_up_to_date
from shoal.gateway.errors import DatabaseAway
from shoal.option_values import database_parameters, server_of

try:
    import psycopg
    from psycopg.abc import PQGen
    from psycopg.conninfo import make_conninfo
    from psycopg.pq import TransactionStatus
    from psycopg.rows import TupleRow
except ImportError as error:
    raise IncompatibleLibrary(
        "the setting database names a PostgreSQL server, and psycopg is not installed",
        check="install the extra: pip install 'shoal[postgres]'",
        next_command="shoal version",
    ) from error

WITHIN_S = 5.0
"""For a place, for a connection, and for each statement."""
SCHEMA_WITHIN_S = 3600.0
"""For each statement of the steps by which tables are brought up to date."""
CANCEL_S = 0.5
"""How much sooner the server is to give a statement up than we do: then the connection stays good."""
CONNECTIONS = 8
"""Of one gateway."""
SHORT = 3
"""Of them, those that are left to what all requests wait for."""
FORSAKEN_S = 30.0
"""A transaction in which nothing happens for so long is ended by the server: its gateway is gone."""
BEGIN = b"BEGIN ISOLATION LEVEL READ COMMITTED"
"""Whatever the server's default: who has waited for a lock must see what was written meanwhile."""
CHECK = "that the server runs, and that the setting database is right; what needs no database goes on"


class _Lane:
    """Connections that are taken in turn, each with a thread."""

    def __init__(self, connections: int) -> None:
        self.turns = trio.Semaphore(connections)
        self.threads = trio.CapacityLimiter(connections)


class PostgresDatabase(Database):
    """One database of a server.

    Args:
        url: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``, with any parameter of libpq.
        within_s: how long anything may take.
        connections: two at least.

    Raises:
        UsageError: the address is none; it is not quoted, for it may hold a password.
    """

    shared = True

    def __init__(self, url: str, *, within_s: float = WITHIN_S, connections: int = CONNECTIONS) -> None:
        self.url = url
        self._given = database_parameters(url)
        self._where = f"the PostgreSQL at {server_of(url)}"
        self._within_s = within_s
        self._idle: list[_Connection] = []
        """The one that was used last is at the end, and used first."""
        self._guard = threading.Lock()
        self._places = threading.BoundedSemaphore(connections)
        short = min(SHORT, connections - 1)
        self._long, self._short = _Lane(connections - short), _Lane(short)

    @property
    def exists(self) -> bool:
        return True

    @contextmanager
    def transaction(self, lock: str | None = None) -> Generator[Transaction]:
        """As :meth:`Database.transaction`. Locks are PostgreSQL's advisory ones, by a name's hash."""
        if not self._places.acquire(timeout=self._within_s):
            raise self._busy()
        try:
            with self._told(), self._begun() as connection:
                found = _PostgresTransaction(connection)
                if lock is not None:
                    found.lock(lock)
                yield found
        finally:
            self._places.release()

    async def run(
        self, function: Callable[[*RunArguments], RunResult], *arguments: *RunArguments
    ) -> RunResult:
        """As :meth:`Database.run`. No more threads than connections: none is kept from others by a server
        that does not answer."""
        return await self._on_thread(self._long, function, *arguments)

    async def run_short(
        self, function: Callable[[*RunArguments], RunResult], *arguments: *RunArguments
    ) -> RunResult:
        """As :meth:`Database.run_short`, on connections of its own."""
        return await self._on_thread(self._short, function, *arguments)

    async def _on_thread(
        self,
        lane: _Lane,
        function: Callable[[*RunArguments], RunResult],
        *arguments: *RunArguments,
    ) -> RunResult:
        with trio.move_on_after(self._within_s) as waiting:
            await lane.turns.acquire()
        if waiting.cancelled_caught:
            raise self._busy()
        try:
            return await trio.to_thread.run_sync(function, *arguments, limiter=lane.threads)
        finally:
            lane.turns.release()

    def close(self) -> None:
        with self._guard:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextmanager
    def _told(self) -> Generator[None]:
        """What the server or the way to it does, said in our words. No line of theirs has a secret."""
        try:
            yield
        except psycopg.Error as error:
            said = str(error).strip().partition("\n")[0] or type(error).__name__
            raise DatabaseAway(f"{self._where} cannot be used: {said}", check=CHECK) from error

    @contextmanager
    def _begun(self) -> Generator[_Connection]:
        connection = self._begin()
        try:
            yield connection
            connection.execute(b"COMMIT")
        except BaseException:
            connection.abandon()
            raise
        finally:
            if not connection.closed:
                with self._guard:
                    self._idle.append(connection)

    def _begin(self) -> _Connection:
        """A connection within a transaction. Those that the server has closed meanwhile are dropped."""
        until = time.monotonic() + self._within_s
        while True:
            with self._guard:
                kept = self._idle.pop() if self._idle else None
            connection = kept or self._connect()
            try:
                connection.execute(BEGIN)
            except psycopg.Error:
                connection.close()
                if kept is None or time.monotonic() >= until:
                    raise
            else:
                return connection

    def _connect(self) -> _Connection:
        defaults: dict[str, str | int] = {
            "application_name": "shoal",
            "connect_timeout": max(2, round(self._within_s)),  # libpq knows no less
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        connection = _Connection.connect(make_conninfo("", **defaults | self._given), autocommit=True)
        try:
            _set(connection, "idle_in_transaction_session_timeout", FORSAKEN_S)
            _limit(connection, self._within_s)
            self._bring_up_to_date(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _bring_up_to_date(self, connection: _Connection) -> None:
        if is_up_to_date(_version(connection), self._where):
            return
        # Steps on a large database take as long as they take, also those that another gateway takes now.
        _limit(connection, SCHEMA_WITHIN_S)
        # The lock comes before the transaction. One that has waited does not see that there are tables now:
        # while it lasts, the server remembers which names it has found to be nobody's.
        connection.execute(b"SELECT pg_advisory_lock(hashtextextended(%s, 0))", (LOCK,))
        connection.execute(BEGIN)
        bring_up_to_date(_PostgresTransaction(connection), _version(connection), "BYTEA")
        connection.execute(b"COMMIT")
        connection.execute(b"SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (LOCK,))
        _limit(connection, self._within_s)

    def _busy(self) -> DatabaseAway:
        return DatabaseAway(
            f"{self._where} has not answered others within {self._within_s:.0f} s", check=CHECK
        )


class _Connection(psycopg.Connection[TupleRow]):
    """A connection on which no statement takes for ever, also where the server is there and does nothing."""

    within_s = WITHIN_S

    def wait(self, gen: PQGen[Any], interval: float = 0.1, timeout: float | None = None) -> Any:
        return super().wait(gen, interval, self.within_s if timeout is None else timeout)

    def abandon(self) -> None:
        """Undo the transaction; where that cannot be known to be done, close."""
        try:
            if self.info.transaction_status in (TransactionStatus.INTRANS, TransactionStatus.INERROR):
                self.execute(b"ROLLBACK")
        except psycopg.Error:
            self.close()  # which undoes it, too
        if self.info.transaction_status != TransactionStatus.IDLE:
            self.close()


class _PostgresTransaction:
    def __init__(self, connection: _Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        return self._connection.execute(_spelled(sql), _bound(parameters))

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        with self._connection.cursor() as cursor:
            cursor.executemany(_spelled(sql), map(_bound, rows))

    def now(self) -> float:
        return self.execute(
            "SELECT CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)"
        ).fetchone()[0]

    def lock(self, name: str) -> None:
        """Wait until nobody else has this lock, and hold it until the transaction ends."""
        self.execute("SELECT pg_advisory_xact_lock(hashtextextended(?, 0))", (name,))


def _limit(connection: _Connection, within_s: float) -> None:
    """Let no statement take longer, nor the server go on with what we gave up, or hold what it locked."""
    connection.within_s = within_s + CANCEL_S
    _set(connection, "statement_timeout", within_s)


def _set(connection: _Connection, name: str, seconds: float) -> None:
    connection.execute(b"SELECT set_config(%s, %s, false)", (name, f"{seconds * 1000:.0f}"))


def _version(connection: _Connection) -> int:
    """Steps that the database has had."""
    there = connection.execute(b"SELECT to_regclass('schema_version') IS NOT NULL").fetchone()
    if there != (True,):
        return 0
    found = connection.execute(b"SELECT coalesce(max(version), 0) FROM schema_version").fetchone()
    return found[0] if found else 0


def _spelled(sql: str) -> bytes:
    return sql.replace("?", "%s").encode()


def _bound(parameters: Sequence[Any]) -> list[Any]:
    """Parameters as the columns take them: flags are numbers, and a text has no NUL, which nothing that we
    look for has either."""
    return [
        int(value)
        if isinstance(value, bool)
        else value.replace("\0", "\N{REPLACEMENT CHARACTER}")
        if isinstance(value, str)
        else value
        for value in parameters
    ]
