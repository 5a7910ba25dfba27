"""The file in which this machine's record of audits is kept, for all its clients."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from shoal.errors import Busy, OutOfResources, ShoalError
from shoal.routing.reputation import lie_left
from shoal.trust.audit_record import MAX_RECORD, AuditRecord, read_record
from shoal.types import PeerId

LOCK_WITHIN_S = 5.0
FORGIVEN = 1 / 8
"""So little left of a lie keeps nobody out any more: some three days after it."""

log = logging.getLogger(__name__)

_Found = TypeVar("_Found")


class AuditBook:
    """Reads and changes the file. To be called from a thread: it waits for other processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> AuditRecord:
        """The record as it is.

        Raises:
            UsageError: the file is none.
            OutOfResources: it cannot be read.
        """
        try:
            with self._path.open("rb") as stream:
                return read_record(stream.read(MAX_RECORD + 1), str(self._path))
        except FileNotFoundError:
            return AuditRecord()
        except OSError as error:
            raise self._unusable(error) from error

    def liars(self, now: float) -> frozenset[PeerId]:
        """Who was found out not long before ``now``. Nobody where that cannot be read, which is logged."""
        try:
            ages = self.read().ages(now)
        except ShoalError as error:
            log.warning("what audits have found is not known: %s", error.message)
            return frozenset()
        return frozenset(peer for peer, age_s in ages if lie_left(age_s) > FORGIVEN)

    def change(self, change: Callable[[AuditRecord], tuple[AuditRecord, _Found]]) -> _Found:
        """Write what ``change`` makes of the record, while nobody else does; returns what it found.

        Raises:
            Busy: another process does, for long.
            UsageError, OutOfResources: as :meth:`read`; or it cannot be written.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock"), timeout=LOCK_WITHIN_S):
                changed, found = change(self.read())
                fresh = self._path.with_suffix(f".{os.getpid()}")
                fresh.write_bytes(changed.encoded())
                fresh.replace(self._path)
        except Timeout as error:
            raise Busy(f"another process holds {self._path}") from error
        except OSError as error:
            raise self._unusable(error) from error
        return found

    def _unusable(self, error: OSError) -> OutOfResources:
        return OutOfResources(
            f"{self._path}: {error.strerror}", check="check that this user may read and write it"
        )
