"""Responses that were answered with ``store``, by key: bounded in number, bytes and days.

Each row holds one turn: what it brought and what was answered. A conversation is the chain of turns that
``previous`` leads through, and using it renews all of them. Every function here reads or writes the disk.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from shoal.errors import UsageError
from shoal.gateway.database.database import Database, Transaction
from shoal.gateway.database.forgetting import check_good, drop_rows
from shoal.gateway.errors import BadRequest, NotFound
from shoal.gateway.stored.expiry import Keeping

PER_KEY = 1024
"""Responses that are kept for one key; those that were longest unused make room."""
PER_KEY_BYTES = 64 << 20
CONVERSATION_BYTES = 8 << 20
"""Of all turns of one conversation as they are stored: as much as a body may have."""


class PreviousResponseNotFound(BadRequest):
    """A conversation cannot go on: one of its responses is not kept, or not for this key.

    The route is there and the field is wrong, so it is a 400, as OpenAI has it.
    """

    code = "previous_response_not_found"


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """One turn."""

    id: str
    previous: str | None
    """The response that it continues."""
    items: list[dict[str, Any]]
    """What this turn brought, as the API lists it."""
    response: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a conversation needs of one of its turns."""

    id: str
    items: list[dict[str, Any]]
    output: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Chain:
    """A conversation's turns, the oldest first."""

    turns: list[Turn] = field(default_factory=list[Turn])
    broken_at: str | None = None
    """The response before the first of them, which is no longer kept."""


class ResponseStore:
    """The responses in the gateway's database."""

    def __init__(self, database: Database, keeping: Keeping) -> None:
        self.database = database
        self.keeping = keeping

    def save(self, caller: str, turn: StoredResponse) -> bool:
        """Keep a turn, or say that it is too large to be kept.

        Raises:
            OutOfResources: the database cannot be written.
            Unauthorized: the caller's key was revoked meanwhile.
        """
        items, response = msgspec.json.encode(turn.items), msgspec.json.encode(turn.response)
        size = len(items) + len(response)
        if size > PER_KEY_BYTES:
            return False
        with self.database.transaction(_lock(caller)) as changes:
            changes.execute(
                "INSERT INTO responses (number, id, caller, previous, used, size, items, response) "
                "VALUES ((SELECT coalesce(max(number), 0) + 1 FROM responses WHERE caller = ?), "
                "?, ?, ?, ?, ?, ?, ?)",
                (caller, turn.id, caller, turn.previous, self.keeping.clock(), size, items, response),
            )
            _make_room(changes, caller)
            check_good(changes, caller)
        return True

    def find(self, caller: str, id: str) -> dict[str, Any]:
        """The caller's response of this id.

        Raises:
            NotFound: there is none, or it is another key's: nobody is told which.
        """
        with self.database.transaction() as found:
            row = found.execute(
                "SELECT response FROM responses WHERE id = ? AND caller = ? AND used > ?",
                (id, caller, self._oldest()),
            ).fetchone()
        if row is None:
            raise self._not_found(id)
        return msgspec.json.decode(row[0])

    def chain(self, caller: str, id: str) -> Chain:
        """The conversation that ends with this response, as far back as it is kept; all of it counts as used.

        Raises:
            UsageError: it is longer than one request may be.
        """
        turns: list[Turn] = []
        size, wanted = 0, cast("str | None", id)
        with self.database.transaction(_lock(caller)) as database:
            while wanted is not None and (found := self._turn(database, caller, wanted)) is not None:
                previous, stored = found
                size += stored
                if size > CONVERSATION_BYTES:  # before any of it is read
                    raise UsageError(
                        f"the conversation before {id[:64]!r} has more than {CONVERSATION_BYTES} bytes",
                        check="begin a new conversation, without previous_response_id",
                    )
                turns.append(_read_turn(database, wanted))
                wanted = previous
            now = self.keeping.clock()
            database.executemany("UPDATE responses SET used = ? WHERE id = ?", [(now, t.id) for t in turns])
        return Chain(turns[::-1], wanted)

    def history(self, caller: str, id: str) -> list[dict[str, Any]]:
        """Everything that was said up to this response, as items.

        Raises:
            PreviousResponseNotFound: not all of it is kept.
            UsageError: as :meth:`chain`.
        """
        chain = self.chain(caller, id)
        if chain.broken_at is not None:
            raise PreviousResponseNotFound(
                f"no response {chain.broken_at[:64]!r} is stored for this key, and the conversation needs it",
                check=self._check(),
                param="previous_response_id",
            )
        return [item for turn in chain.turns for item in (*turn.items, *turn.output)]

    def made_from(self, caller: str, id: str) -> list[dict[str, Any]]:
        """What the response was made from, as items: as OpenAI has it, the turns before it too.

        Raises:
            NotFound: as :meth:`find`.
            UsageError: as :meth:`chain`.
        """
        turns = self.chain(caller, id).turns
        if not turns:
            raise self._not_found(id)
        *before, last = turns
        return [*(item for turn in before for item in (*turn.items, *turn.output)), *last.items]

    def delete(self, caller: str, id: str) -> None:
        """Forget a response. Raises NotFound as :meth:`find`."""
        with self.database.transaction() as changes:
            deleted = changes.execute(
                "DELETE FROM responses WHERE id = ? AND caller = ? AND used > ?", (id, caller, self._oldest())
            )
        if not deleted.rowcount:
            raise self._not_found(id)

    def sweep(self) -> bool:
        """Forget some of what has expired, and say whether there may be more."""
        return drop_rows(self.database, "responses", "used <= ?", (self._oldest(),))

    def _turn(self, database: Transaction, caller: str, id: str) -> tuple[str | None, int] | None:
        """The response before a turn, and the turn's bytes."""
        return database.execute(
            "SELECT previous, size FROM responses WHERE id = ? AND caller = ? AND used > ?",
            (id, caller, self._oldest()),
        ).fetchone()

    def _oldest(self) -> float:
        return self.keeping.clock() - self.keeping.longest_s

    def _not_found(self, id: str) -> NotFound:
        return NotFound(f"no response {id[:64]!r} is stored for this key", check=self._check())

    def _check(self) -> str:
        if not self.keeping.on:
            return "this gateway keeps no responses: its setting store_days is 0"
        return (
            "that it was made with this key and without store: false; a response is kept for "
            f"{self.keeping.days} days after its last use, unless it is deleted or newer ones need its room"
        )


class _Answered(msgspec.Struct):
    output: list[dict[str, Any]]


def _read_turn(database: Transaction, id: str) -> Turn:
    items, response = database.execute("SELECT items, response FROM responses WHERE id = ?", (id,)).fetchone()
    return Turn(id, msgspec.json.decode(items), msgspec.json.decode(response, type=_Answered).output)


def _lock(caller: str) -> str:
    """Held by who changes which of a caller's responses are kept."""
    return f"responses of {caller}"


def _make_room(database: Transaction, caller: str) -> None:
    """Forget the caller's responses that were longest unused, until the rest is within bounds."""
    rows = database.execute(
        "SELECT id, size FROM responses WHERE caller = ? ORDER BY used DESC, number DESC", (caller,)
    ).fetchall()
    total, beyond = 0, list[tuple[str]]()
    for place, (id, size) in enumerate(rows):
        total += size
        if place >= PER_KEY or total > PER_KEY_BYTES:
            beyond.append((id,))
    database.executemany("DELETE FROM responses WHERE id = ?", beyond)
