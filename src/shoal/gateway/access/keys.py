"""API keys: shown once, kept as hashes, compared in constant time.

A key is ``sk-shoal-`` and 43 characters of randomness: 256 bits, so one round of SHA-256 is hash enough.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from shoal.errors import OutOfResources, UsageError
from shoal.gateway.database.database import Database
from shoal.gateway.database.forgetting import forget_some
from shoal.types import ProtectionLevel, protection_level

PREFIX = "sk-shoal-"
MAX_NAME = 64
KNOWN_S = 600.0
"""How long the keys that were read last are good where several gateways share a database and it is away: a
key may have been revoked elsewhere since."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may do; 0 is without limit."""

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    """Of prompts and answers together."""
    concurrency: int = 0
    """Requests at once, those that wait among them."""


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is answered."""

    id: str
    name: str
    limits: KeyLimits = KeyLimits()
    admin: bool = False
    """Whether invites to the swarm may be shown."""
    attested_only: bool = False
    """Whether it is answered by peers alone that show what they run on."""
    protect: ProtectionLevel | None = None
    """How the caller's answers are protected where a request does not say; ``None`` as the gateway is set."""
    background: bool = False
    """Whether nobody waits for the answer: it has limits of its own, and gives way to all others."""
    most_tokens: int = 0
    """Of one request, its prompt and its answer together; 0 is without limit."""
    spend: Callable[[int], None] | None = None
    """Is told of the tokens that a request has used, where they are paid for."""

    @property
    def attested(self) -> bool:
        """Whether what has no protection of its own is answered by attested peers alone."""
        return self.attested_only or self.protect == "attested"


LOCAL = Caller("local", "this machine", admin=True)
"""Who calls from this machine while there are no keys."""
PAYING = Caller("paying", "whoever pays")
"""Who calls without a key where answers can be paid for, before it has paid."""


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as ``shoal key list`` shows it."""

    caller: Caller
    created: float
    revoked: float | None


class KeyRing:
    """The keys that are good now, as they were when last read. ``refresh`` may run on any thread.

    Until it was called, nobody can be let in.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: tuple[tuple[bytes, Caller], ...] = ()
        self._read_at = -math.inf

    @property
    def any(self) -> bool:
        """Whether there is a key at all; without one, this machine alone is served."""
        return bool(self._known)

    @property
    def needed(self) -> bool:
        """Whether nobody is answered without a key: there is one, or gateways on other machines have the same
        database, where all who come without one would be one caller."""
        return self.any or self._database.shared

    def refresh(self) -> None:
        """Read the keys again."""
        began, rows = time.monotonic(), list[Any]()
        if self._database.exists:
            with self._database.transaction() as found:
                rows = found.execute(f"SELECT hash, {_COLUMNS} FROM keys WHERE revoked IS NULL").fetchall()
        self._known = tuple((bytes(row[0]), _caller(row[1:])) for row in rows)
        self._read_at = began

    def check_known(self) -> None:
        """Whether it is still known which keys are good.

        Raises:
            OutOfResources: they could not be read for :data:`KNOWN_S`, and others may have revoked some.
        """
        most = KNOWN_S if self._database.shared else math.inf
        if time.monotonic() - self._read_at > most or self._read_at == -math.inf:
            raise OutOfResources("the gateway cannot read its keys", check="that its database can be reached")

    def caller(self, id: str) -> Caller | None:
        """Who has this id now: the owner of a good key, or this machine where no key is needed."""
        if not self.needed:
            return LOCAL if id == LOCAL.id else None
        return next((caller for _, caller in self._known if caller.id == id), None)

    def find(self, key: str) -> Caller | None:
        """Whose key this is. Every key is compared, whole, whichever it is."""
        presented = _hash(key)
        found = None
        for digest, caller in self._known:
            if hmac.compare_digest(digest, presented):
                found = caller
        return found


def create(
    database: Database,
    name: str,
    limits: KeyLimits,
    *,
    admin: bool,
    attested_only: bool = False,
    protect: ProtectionLevel | None = None,
) -> tuple[str, Caller]:
    """A new key and whose it is. The key itself is not kept and cannot be shown again.

    Raises:
        UsageError: a name that is empty or too long, or a limit below 0.
    """
    if not 0 < len(name) <= MAX_NAME or not name.isprintable():
        raise UsageError(f"a key's name has 1 to {MAX_NAME} printable characters")
    if min(limits.requests_per_minute, limits.tokens_per_minute, limits.concurrency) < 0:
        raise UsageError("a limit is a whole number, or 0 for none")
    key = PREFIX + secrets.token_urlsafe(32)
    caller = Caller(f"key_{secrets.token_hex(4)}", name, limits, admin, attested_only, protect)
    with database.transaction() as changes:
        changes.execute(
            f"INSERT INTO keys (hash, created, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _hash(key),
                time.time(),
                caller.id,
                name,
                admin,
                limits.requests_per_minute,
                limits.tokens_per_minute,
                limits.concurrency,
                attested_only,
                protect,
            ),
        )
    return key, caller


def list_keys(database: Database) -> list[KeyRecord]:
    """Every key that was ever made, the oldest first."""
    if not database.exists:
        return []
    with database.transaction() as found:
        rows = found.execute(f"SELECT created, revoked, {_COLUMNS} FROM keys ORDER BY created").fetchall()
    return [KeyRecord(_caller(row[2:]), row[0], row[1]) for row in rows]


def revoke(database: Database, which: str) -> Caller:
    """End a key, by its id or its name, and delete what is kept for it.

    Running gateways refuse it within a second or two. What cannot be deleted now they delete with their next
    sweep: the key is revoked all the same.

    Raises:
        UsageError: no good key has this id or name, or more than one has the name.
    """
    meant = [
        r.caller for r in list_keys(database) if r.revoked is None and which in (r.caller.id, r.caller.name)
    ]
    if len(meant) != 1:
        count = "no key" if not meant else f"{len(meant)} keys"
        raise UsageError(f"{count} named {which!r}", check="give the key's id", next_command="shoal key list")
    with database.transaction() as changes:  # alone: much may be kept for it, and it must be refused now
        changes.execute("UPDATE keys SET revoked = ? WHERE id = ?", (time.time(), meant[0].id))
    try:
        while forget_some(database, meant[0].id):
            pass
    except OutOfResources as error:
        log.warning("what is kept for %s is deleted later, by a gateway: %s", meant[0].id, error.message)
    return meant[0]


_COLUMNS = "id, name, admin, requests_per_minute, tokens_per_minute, concurrency, attested_only, protect"


def _caller(row: Sequence[Any]) -> Caller:
    limits = KeyLimits(row[3], row[4], row[5])
    return Caller(row[0], row[1], limits, bool(row[2]), bool(row[6]), protection_level(row[7]))


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
