"""What a client says of itself to a hop that it asks: in whose name it asks, and how it will pay."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shoal.client.paying.work import HopWork
from shoal.errors import PaymentStopped
from shoal.net.channel import Channel
from shoal.swarm.announcement import PRICED_TOKENS, AskedPrice
from shoal.types import PeerId, Span
from shoal.wire.paying import PaymentDue, PaymentOffer, ShownCredit


@dataclass(frozen=True, slots=True)
class HopTerms:
    """Of one session at one hop."""

    credit: ShownCredit | None = None
    payment: PaymentOffer | None = None


TermsOf = Callable[[PeerId, AskedPrice | None, Span], Awaitable[HopTerms]]
"""For a hop, what it asks, and the blocks that it is to run. Raises a ShoalError: there can be none."""


@dataclass(frozen=True, slots=True)
class HopBill:
    """What a hop of a ring may ask for what it has done there."""

    peer: PeerId
    price: AskedPrice
    blocks: int
    work: HopWork
    channel: Channel | None

    @property
    def token_micro(self) -> int:
        """Of a token, in millionths of the smallest unit."""
        return self.blocks * self.price.amount

    @property
    def step_tokens(self) -> int:
        """Of one step: a fourth of what it gives credit for, so that it need not wait between two."""
        return max(1, self.price.window * PRICED_TOKENS // self.token_micro // 4)

    @property
    def came_micro(self) -> int:
        """For what has come back."""
        return self.work.came * self.token_micro

    def most_micro(self, micro: int) -> int:
        """For what it may have done, while it may be owed ``micro`` beyond what has come back."""
        return min(self.work.asked * self.token_micro, self.came_micro + micro)


class Payer(Protocol):
    """Who pays hops, outside of the steps."""

    async def offer(self, peer: PeerId, price: AskedPrice) -> PaymentOffer:
        """How a session at ``peer`` will be paid for.

        Raises:
            PaymentStopped: it will not, as the budget is spent or the node is paid elsewhere.
            ShoalError: the chain or the disk does not answer.
        """
        ...

    def note_due(self, channel: Channel, message: PaymentDue) -> bool:
        """A hop says what it is owed. Returns whether :meth:`pay_due` is to be run at once.

        Raises:
            RemoteProtocolError: this payment channel was not offered to it.
        """
        ...

    def note_over(self, bills: Sequence[HopBill]) -> None:
        """A session is over: what it had is to be paid for."""
        ...

    async def owing(self) -> Sequence[bytes]:
        """Wait until something is owed, and then a moment for more of it, unless it is much.

        Returns:
            The payment channels of which :meth:`pay_due` is to be run.
        """
        ...

    def owing_now(self) -> Sequence[bytes]:
        """As :meth:`owing`, without waiting."""
        ...

    async def pay_due(
        self, channel_id: bytes, bills: Callable[[], Sequence[HopBill]]
    ) -> Mapping[Channel, PaymentStopped]:
        """Pay what is due and what sessions have left owing, as far as the bills allow.

        Args:
            bills: of all sessions that are open by then, or are being opened.

        Returns:
            Of each channel whose hop waits and goes on waiting, why.
        """
        ...


async def no_terms(peer: PeerId, price: AskedPrice | None, span: Span) -> HopTerms:
    """Of a client that is nobody in particular, and pays nothing."""
    return HopTerms()
