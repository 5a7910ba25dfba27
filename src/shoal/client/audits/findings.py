"""What follows from what was found of peers: with this client, on this machine, and no further."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import trio

from shoal.client.audits.auditors import HERE
from shoal.errors import ShoalError
from shoal.routing.reputation import SHARED_FAULT, Reputation
from shoal.swarm.audit_book import AuditBook
from shoal.trust.audit_record import AuditRecord, Conviction
from shoal.types import PeerId, Span

log = logging.getLogger(__name__)


class Findings:
    """Remembers it, in this client's opinion of its peers and in this machine's book.

    Args:
        canary: whether a canary finds it.
    """

    def __init__(self, book: AuditBook, reputation: Reputation, *, canary: bool = False) -> None:
        self.book = book
        self._reputation = reputation
        self._canary = canary

    async def remember(self) -> None:
        """Hold against peers what was found earlier on this machine."""
        try:
            record = await trio.to_thread.run_sync(self.book.read)
        except ShoalError as error:
            log.warning("what earlier audits have found is not known: %s", error.message)
            return
        now = trio.current_time()
        for peer, age_s in record.ages(time.time()):
            self._reputation.lied(peer, now - age_s)

    def hold_against(self, peer: str, share: float) -> None:
        """Hold a share of a fault against a peer; none of 0."""
        if share:
            self._reputation.failed(PeerId(peer), trio.current_time(), share)

    def contradicted(self, auditors: Sequence[str]) -> None:
        """These auditors found what two others who are apart did not: half of a fault for each."""
        for name in auditors:
            if name.startswith(HERE):
                log.warning("audit: %s computes other rows than two peers: check its weights", HERE)
                continue
            for peer in name.split(" and "):
                self.hold_against(peer, SHARED_FAULT)

    async def convict(self, peer: str, digest: str, span: Span) -> None:
        """A peer has signed what its blocks do not give.

        Raises:
            ShoalError: that cannot be written down.
        """
        log.warning("audit: %s computes something else than its blocks %s", peer, span)
        self._reputation.lied(PeerId(peer), trio.current_time())
        found = Conviction(PeerId(peer), time.time(), digest, span.start, span.end, self._canary)

        def change(record: AuditRecord) -> tuple[AuditRecord, None]:
            return record.convict(found), None

        await trio.to_thread.run_sync(self.book.change, change)
