"""Pays hops beside one client's sessions: at once where much is owed or a hop waits, else a moment later.

A voucher is signed for all that was given until then, so sessions that follow each other closely are paid for
by one, and none of them waits until it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import trio

from shoal.client.paying.terms import HopBill, Payer
from shoal.errors import PaymentStopped
from shoal.net.channel import Channel
from shoal.tasks import ends_alone
from shoal.wire.paying import PaymentDue

CLOSED_WITHIN_S = 1.0
"""How long the last payment waits for sessions that end when the client does."""
LAST_WITHIN_S = 5.0
"""How long it may take in all: the disk of a busy machine takes seconds."""
CLOSED_LOOK_S = 0.01

log = logging.getLogger(__name__)


class Payments:
    """See the module. ``run`` must be running.

    Args:
        bills: of all sessions that are open, or being opened.
        stop: ends the sessions whose hop has this channel, and which is not paid any more.
    """

    def __init__(
        self,
        payer: Payer,
        bills: Callable[[], Sequence[HopBill]],
        stop: Callable[[Channel, PaymentStopped], None],
    ) -> None:
        self._payer = payer
        self._bills = bills
        self._stop = stop
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Pay until cancelled; then pay what is left."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    for channel_id in await self._payer.owing():
                        self._nursery.start_soon(self._pay, channel_id)
        finally:
            self._nursery = None
            with trio.move_on_after(LAST_WITHIN_S, shield=True):
                await self._pay_all()

    def due(self, channel: Channel, message: PaymentDue) -> None:
        """A hop says what it is owed.

        Raises:
            RemoteProtocolError: as :meth:`Payer.note_due`.
        """
        # At the end nobody would pay what is taken up here: the last payment is what this side has counted.
        if self._nursery is not None and self._payer.note_due(channel, message):
            self._nursery.start_soon(self._pay, message.channel_id)

    async def _pay(self, channel_id: bytes) -> None:
        """Pay what is due; where that is not to be paid, the sessions of those hops end with why."""
        with ends_alone(log, "paying a hop"):
            for channel, stopped in (await self._payer.pay_due(channel_id, self._bills)).items():
                self._stop(channel, stopped)

    async def _pay_all(self) -> None:
        with trio.move_on_after(CLOSED_WITHIN_S):
            while self._bills():  # noqa: ASYNC110  they end by whoever has them
                await trio.sleep(CLOSED_LOOK_S)
        async with trio.open_nursery() as nursery:
            for channel_id in self._payer.owing_now():
                nursery.start_soon(self._pay, channel_id)
