"""All that a client keeps of what hops do for it: it signs for it, or pays for it, or neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shoal.client.paying.acknowledging import Acknowledging
from shoal.client.paying.payments import Payments
from shoal.client.paying.terms import HopBill, HopTerms, Payer
from shoal.errors import PaymentStopped
from shoal.net.channel import Channel
from shoal.swarm.announcement import AskedPrice
from shoal.types import PeerId, Span


@dataclass(frozen=True, slots=True)
class GivenWork:
    """What a hop that keeps credits has given."""

    peer: PeerId
    units: int
    """Tokens times blocks."""
    channel: Channel | None


class HopAccounts:
    """See the module.

    Args:
        acknowledging: in whose name hops are asked; ``None``: in nobody's.
        payer: who pays hops that ask for it; ``None``: nobody.
    """

    def __init__(self, acknowledging: Acknowledging | None = None, payer: Payer | None = None) -> None:
        self._acknowledging = acknowledging
        self.payer = payer

    async def terms(self, peer: PeerId, price: AskedPrice | None, span: Span) -> HopTerms:
        """What a hop is told. Raises PaymentStopped: it asks for payment, and there is none."""
        credit = await self._acknowledging.shown() if self._acknowledging is not None else None
        if price is None:
            return HopTerms(credit)
        if self.payer is None:
            raise PaymentStopped(
                "this node asks for payment, and this client has no wallet to pay from",
                reason="budget spent",
                check="set pay-budget and pay-password-file",
                next_command="shoal wallet create",
            )
        return HopTerms(credit, await self.payer.offer(peer, price))

    def payments(
        self, bills: Callable[[], Sequence[HopBill]], stop: Callable[[Channel, PaymentStopped], None]
    ) -> Payments | None:
        """What pays beside sessions, where anything does. See :class:`Payments`."""
        return Payments(self.payer, bills, stop) if self.payer is not None else None

    async def settle(self, given: Sequence[GivenWork], bills: Sequence[HopBill]) -> None:
        """A session is over: sign for it; what is owed for it is paid beside what follows."""
        if self.payer is not None:
            self.payer.note_over(bills)
        if self._acknowledging is not None:
            units: dict[PeerId, int] = {}
            for one in given:
                units[one.peer] = units.get(one.peer, 0) + one.units
            channels = {one.peer: one.channel for one in given if one.channel is not None}
            await self._acknowledging.acknowledge(units, channels)
