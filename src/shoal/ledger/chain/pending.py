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

Action = Literal["wait", "send again", "reprice", "done", "reverted", "replaced", "give up"]


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
    """What to do.

    A block may be undone, and the transaction with it: then the node does not know it any more, or knows it
    as waiting, and all begins again. Sent twice it still happens once, as its number is the same.
    """
    if view.block is None:
        return _to_get_in(pending, view, now)
    if view.head - view.block + 1 < confirmations:
        return "wait" if now - pending.began < GIVE_UP_S else "give up"
    return "done" if view.well else "reverted"


def _to_get_in(pending: Pending, view: TransactionView, now: float) -> Action:
    """What to do about one that is in no block."""
    if view.nonce > pending.nonce:
        return "replaced"
    if now - pending.began >= GIVE_UP_S:
        return "give up"
    if not view.known:
        return "send again"
    if now - pending.sent >= REPRICE_S and pending.raises < MOST_RAISES:
        return "reprice"
    return "wait"
