"""What to do about a transaction that was sent: a pure function of what the node says of it now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

REPRICE_S = 30.0
"""So long it waits at one price."""
RAISE_PERCENT = 125
"""Of the price before; nodes take no replacement below 110."""
MOST_RAISES = 10
"""Nine times the first price. Above that it waits."""
GIVE_UP_S = 600.0
OVERTAKEN_POLLS = 5
"""So often in a row it must be unknown, and its number used, before it is believed to be replaced: the nodes
behind one address do not all know the same."""
REFUSED_S, MOST_REFUSED_S = 2.0, 60.0
"""How long it is not sent again after a refusal: twice as long each time, up to the second."""
MOST_REFUSALS = 8

Action = Literal["wait", "send again", "reprice", "done", "reverted", "replaced", "refused", "give up"]


@dataclass(frozen=True, slots=True)
class Fees:
    """What a unit of gas may cost, in wei."""

    tip: int
    most: int

    def raised(self) -> Fees:
        """More, by enough for a node to replace one by the other."""
        return Fees(self.tip * RAISE_PERCENT // 100 + 1, self.most * RAISE_PERCENT // 100 + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A transaction that was sent, at one price or several."""

    nonce: int
    fees: Fees
    began: float
    sent: float
    """When it was last sent at a new price."""
    raises: int = 0
    highest: int | None = None
    """What a unit of gas may cost at most after raises."""
    taken: bool = False
    """Whether a node took it, or may have."""
    refusals: int = 0
    send_at: float = 0.0
    """When it may be sent again."""
    overtaken: int = 0
    """How often in a row it was unknown while its number was used."""
    overtaken_at: int = 0
    """The newest block when that was first seen."""

    def refused(self, now: float) -> Pending:
        """The node did not take it when it was sent."""
        wait_s = min(MOST_REFUSED_S, REFUSED_S * 2**self.refusals)
        return replace(self, refusals=self.refusals + 1, send_at=now + wait_s)

    def seen(self, view: TransactionView) -> Pending:
        """With what the node says now."""
        if view.known or view.nonce <= self.nonce:
            return replace(self, taken=self.taken or view.known, overtaken=0)
        since = self.overtaken_at if self.overtaken else view.head
        return replace(self, overtaken=self.overtaken + 1, overtaken_at=since)

    def repriced(self, now: float) -> Pending:
        """It was sent at a higher price."""
        return replace(self, fees=self.fees.raised(), sent=now, raises=self.raises + 1)

    def delayed(self, seconds: float) -> Pending:
        """Nothing could be seen of it for so long."""
        return replace(self, began=self.began + seconds, sent=self.sent + seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionView:
    """What the node says now."""

    known: bool
    """Whether it has the transaction, in a block or waiting for one, at whichever price."""
    block: int | None = None
    """The one that it is in."""
    well: bool = True
    """Whether it did there what it should."""
    head: int
    """The newest block."""
    nonce: int
    """How many transactions of the sender are in blocks."""


def next_action(pending: Pending, view: TransactionView, now: float, confirmations: int) -> Action:
    """What to do, with ``view`` in ``pending`` already (:meth:`Pending.seen`).

    A block may be undone, and the transaction with it: then the node does not know it any more, or knows it
    as waiting, and all begins again. Sent twice it still happens once, as its number is the same.
    """
    if view.block is None:
        if _is_replaced(pending, view, confirmations):
            return "replaced"
        return _to_get_in(pending, view, now)
    if view.head - view.block + 1 < confirmations:
        return "wait" if now - pending.began < GIVE_UP_S else "give up"
    return "done" if view.well else "reverted"


def _is_replaced(pending: Pending, view: TransactionView, confirmations: int) -> bool:
    """Whether another transaction of its number has been in the chain for long enough."""
    if view.known or view.nonce <= pending.nonce or pending.overtaken < OVERTAKEN_POLLS:
        return False
    return view.head - pending.overtaken_at + 1 >= confirmations


def _to_get_in(pending: Pending, view: TransactionView, now: float) -> Action:
    """What to do about one that is in no block, or in one whose receipt is not there yet."""
    if now - pending.began >= GIVE_UP_S:
        return "give up"
    if view.nonce > pending.nonce:
        return "wait"
    if not view.known:
        return _to_be_known(pending, now)
    dear = pending.highest is not None and pending.fees.raised().most > pending.highest
    if now - pending.sent >= REPRICE_S and pending.raises < MOST_RAISES and not dear:
        return "reprice"
    return "wait"


def _to_be_known(pending: Pending, now: float) -> Action:
    if not pending.taken and pending.refusals >= MOST_REFUSALS:
        return "refused"
    return "send again" if now >= pending.send_at else "wait"
