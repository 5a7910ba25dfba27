"""What the rest of the gateway asks of a database, whichever engine it is.

Every query is written once, in the SQL that both engines have: ``?`` for parameters, ``ON CONFLICT`` with its
target, sums cast to ``BIGINT``, no ``rowid``. What differs is in :mod:`~shoal.gateway.database.sqlite` and
:mod:`~shoal.gateway.database.postgres` alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, TypeVar, TypeVarTuple

RunResult = TypeVar("RunResult")
RunArguments = TypeVarTuple("RunArguments")


class Rows(Protocol):
    """What a statement has found or done."""

    @property
    def rowcount(self) -> int:
        """Rows that it has changed."""
        ...

    def fetchone(self) -> Any:
        """The next row as a tuple; ``None`` where there is no more."""
        ...

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        ...


class Transaction(Protocol):
    """Statements of which all are kept, or none."""

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run one statement, with a value for each ``?``."""
        ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for each of ``rows``."""
        ...

    def now(self) -> float:
        """Seconds since 1970 by the database's own clock: one for all gateways that share it."""
        ...


class Database(ABC):
    """Where a gateway keeps its keys and what belongs to them. May be used on any thread."""

    shared: ClassVar[bool]
    """Whether gateways on other machines may have the same one."""

    @property
    @abstractmethod
    def exists(self) -> bool:
        """Whether anything can be in it; without looking for what."""

    @abstractmethod
    def transaction(self, lock: str | None = None) -> AbstractContextManager[Transaction]:
        """Statements that are kept if the block ends well.

        What is read first and written then needs a lock: without one others may write in between.

        Args:
            lock: a name; whoever gives the same one waits until the block has ended.

        Raises:
            OutOfResources: the database cannot be read or written.
        """

    @abstractmethod
    async def run(
        self, function: Callable[[*RunArguments], RunResult], *arguments: *RunArguments
    ) -> RunResult:
        """Run a function that uses this database on a thread, so that nobody waits for it who need not.

        Raises:
            OutOfResources: as :meth:`transaction`, or too many wait for the database already.
        """

    @abstractmethod
    async def run_short(
        self, function: Callable[[*RunArguments], RunResult], *arguments: *RunArguments
    ) -> RunResult:
        """As :meth:`run`, for what all requests wait for and is done in a moment: keys, limits, the beat. No
        work that takes long keeps it waiting."""

    @abstractmethod
    def close(self) -> None:
        """Let go of what is held open."""
