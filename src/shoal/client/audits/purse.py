"""What audits may take: a share of what answers have taken, as this machine's record has it; or, of a canary,
what was set aside for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import SystemRandom
from typing import Protocol

import trio

from shoal.config import Settings
from shoal.swarm.audit_book import AuditBook
from shoal.trust.answer import KeptAnswer
from shoal.trust.audit import AuditTarget, Chance, next_target, target_at
from shoal.trust.audit_record import AuditRecord
from shoal.trust.canary import LAST


@dataclass(frozen=True, slots=True)
class DrawnAudit:
    """What is to be audited of an answer next."""

    target: AuditTarget | None
    share: float
    """Of the compute of answers so far, what audits took."""


class AuditPurse(Protocol):
    """Says what is audited, and pays for it."""

    chance: Chance

    async def draw(self, kept: KeptAnswer, hops: Mapping[int, int], rows: int, row_bytes: int) -> DrawnAudit:
        """What is due of an answer; it is paid for.

        Args:
            hops: those that can be audited and were not yet, with how many windows of each.
            rows: of the answer, those that were computed for it and did not count yet.
            row_bytes: of one row, as it travels.

        Raises:
            ShoalError: the record cannot be read or written.
        """
        ...

    async def pay(self, cost: int) -> None:
        """Somebody else computes a hop again, too. Raises as :meth:`draw`."""
        ...


class BudgetPurse:
    """A share of the compute of all answers of this machine, less what canaries may take of it."""

    def __init__(self, book: AuditBook, settings: Settings) -> None:
        self.chance: Chance = SystemRandom().random
        self._book = book
        self._budget = settings.audit_budget * (1 - settings.canaries)

    async def draw(self, kept: KeptAnswer, hops: Mapping[int, int], rows: int, row_bytes: int) -> DrawnAudit:
        """As :meth:`AuditPurse.draw`: drawn ahead, and due once the budget allows it."""
        blocks = sum(hop.end - hop.start for hop in kept.hops)

        def change(record: AuditRecord) -> tuple[AuditRecord, DrawnAudit]:
            account = record.account
            if not account.earned:
                account = account.draw(self.chance)
            account = account.answered(rows, blocks)
            target = next_target(account, kept, hops, self._budget, row_bytes)
            if target is not None:
                account = account.pay(target.cost).draw(self.chance)
            return record.with_account(account), DrawnAudit(target, account.share)

        return await trio.to_thread.run_sync(self._book.change, change)

    async def pay(self, cost: int) -> None:
        """As :meth:`AuditPurse.pay`."""

        def change(record: AuditRecord) -> tuple[AuditRecord, None]:
            return record.with_account(record.account.pay(cost)), None

        await trio.to_thread.run_sync(self._book.change, change)


class CanaryPurse:
    """What was set aside for one canary, in rows through blocks: all hops are due, as far as that goes."""

    def __init__(self, left: int, chance: Chance) -> None:
        self.chance = chance
        self.left = left

    async def draw(self, kept: KeptAnswer, hops: Mapping[int, int], rows: int, row_bytes: int) -> DrawnAudit:
        """As :meth:`AuditPurse.draw`: each hop in turn, to its last window."""
        target = target_at(self.chance(), LAST, kept, hops, row_bytes)
        if target is None or 2 * target.cost > self.left:  # twice: for whoever must confirm what is found
            return DrawnAudit(None, 0.0)
        await self.pay(target.cost)
        return DrawnAudit(target, 0.0)

    async def pay(self, cost: int) -> None:
        """As :meth:`AuditPurse.pay`."""
        self.left = max(0, self.left - cost)
