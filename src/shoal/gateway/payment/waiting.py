"""Waits for the disk and the chain on threads, and says what callers may hear of it.

Transactions are sent one after another, as one key sends them all. Questions are asked beside them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Literal, TypeVar, get_args

import trio

from shoal.errors import BadLedgerFile, ChainError, OutOfResources, UsageError
from shoal.gateway.errors import LimitReached

ChainCaller = Literal["gateway", "payer", "stranger"]
"""Who wants something of the chain: this gateway, to be paid; who has something in escrow; who says so."""
SENDING = 16
"""Payers who wait for a transaction; one more is sent away."""
TURN_WITHIN_S = 60.0
"""How long a payer waits until its own is begun."""
ASKING = 8
"""Questions to the chain's node at a time, of each kind of askers: strangers cost the others no place."""
ASKERS = 64
"""Of a kind, who wait for an answer of it; one more is sent away."""
ASK_WITHIN_S = 15.0
RETRY_S = 5.0

log = logging.getLogger(__name__)
Result = TypeVar("Result")


async def on_disk(
    work: Callable[[], Result], *, abandon: bool = False, limiter: trio.CapacityLimiter | None = None
) -> Result:
    """Raises OutOfResources without the paths of this machine, which are not for callers."""
    try:
        return await trio.to_thread.run_sync(work, abandon_on_cancel=abandon, limiter=limiter)
    except (BadLedgerFile, OutOfResources, UsageError) as error:
        log.warning("an account of a paid answer cannot be used: %s", error.message)
        raise OutOfResources("the accounts of this gateway cannot be used now") from error


class ChainTurns:
    """Who sends to the chain, and who asks it."""

    def __init__(self) -> None:
        # A place is free again when its thread has ended, also where nobody waits for that any more.
        self._sending = trio.CapacityLimiter(1)
        self._asking = {who: trio.CapacityLimiter(ASKING) for who in get_args(ChainCaller)}
        self._turn = trio.Lock()
        self._senders, self._askers = 0, Counter[ChainCaller]()

    async def send(self, work: Callable[[], Result], who: ChainCaller) -> Result:
        """Have a thread send to the chain; one at a time. What has begun is seen through.

        Raises:
            LimitReached: too many wait for it, or it is not begun in time. The gateway is never sent away.
            ChainError: ``reverted``: the contract refuses.
            OutOfResources: the chain cannot be used now; the log says why.
        """
        ours = who == "gateway"
        if not ours and self._senders >= SENDING:
            raise LimitReached(f"{SENDING} others wait for the chain", retry_after_s=RETRY_S)
        self._senders += not ours
        try:
            with trio.move_on_after(inf if ours else TURN_WITHIN_S) as waiting:
                await self._turn.acquire()
        finally:
            self._senders -= not ours
        if waiting.cancelled_caught:
            raise LimitReached("the chain is slow, and others wait for it", retry_after_s=RETRY_S)
        try:
            # A gateway that is to end does not wait for the chain, which may take hours. What was sent
            # happens all the same.
            return await _told(work, self._sending)
        finally:
            self._turn.release()

    async def ask(self, question: Callable[[], Result], who: ChainCaller) -> Result:
        """Have a thread ask the chain; it may go on when nobody waits any more, so it is to change nothing.

        Raises:
            LimitReached, ChainError: as :meth:`send`.
            OutOfResources: the chain does not answer, or not in time; the log says why.
        """
        if self._askers[who] >= ASKERS:
            raise LimitReached(f"{ASKERS} others wait for what the chain says", retry_after_s=RETRY_S)
        self._askers[who] += 1
        try:
            with trio.move_on_after(ASK_WITHIN_S):
                return await _told(question, self._asking[who])
        finally:
            self._askers[who] -= 1
        log.warning("the chain's node has not answered in %.0f s", ASK_WITHIN_S)
        raise _away()


async def _told(work: Callable[[], Result], limiter: trio.CapacityLimiter) -> Result:
    try:
        return await on_disk(work, abandon=True, limiter=limiter)
    except ChainError as error:
        if error.reason == "reverted":
            raise
        log.warning("the chain cannot be used: %s", error.message)
        raise _away() from error


def _away() -> OutOfResources:
    return OutOfResources("the chain over which this gateway is paid cannot be used now")
