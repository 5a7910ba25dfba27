"""Answers who asks what this node runs on. Anybody may ask; a quote takes the hardware a while, so few wait.

Quotes are made one after the other, on a thread of their own.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import NamedTuple

import trio

from shoal.errors import Busy, ChannelClosed, NotAllowed, ShoalError
from shoal.net.channel import Channel
from shoal.net.handshake_backlog import network_of
from shoal.node.attestation.collateral import CollateralSource
from shoal.node.attestation.quotes import QuoteSource
from shoal.tasks import ends_alone
from shoal.trust.attestation.evidence import Binding, Evidence
from shoal.types import PeerId
from shoal.wire.messages import Attest, Attested, shorten

WAITING = 16
"""Questions that wait or are being answered."""
FOR_CLIENTS = 4
"""Of these places, those for peers with sessions here alone, who lose these without an answer."""
PER_PEER = 2
PER_NETWORK = 6
"""Of peers that come from one network, as identities cost nothing; peers with sessions are counted apart."""
ANSWER_WITHIN_S = 15.0
NOT_ATTESTING = "this node was not started with --attest"

log = logging.getLogger(__name__)


class _Place(NamedTuple):
    """Whose question it is."""

    peer: PeerId
    network: str
    client: bool


class AttestationDesk:
    """Handles ``Attest``. ``run`` must be running.

    Args:
        quotes: what the hardware gives; ``None`` where the node shows nothing.
        bind: what a quote is for, but for the question: this peer, its model, its numerics, its key.
        is_client: whether a peer has a session here.
    """

    def __init__(
        self,
        quotes: QuoteSource | None,
        collateral: CollateralSource,
        bind: Callable[[bytes], Binding],
        is_client: Callable[[PeerId], bool] = lambda _: False,
    ) -> None:
        self._quotes = quotes
        self._collateral = collateral
        self._bind = bind
        self._is_client = is_client
        self._asking = Counter[_Place]()
        self._limiter = trio.CapacityLimiter(1)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def take(self, channel: Channel, message: Attest, payload: bytes) -> None:
        """Take a question in; it is answered later, or refused now."""
        if self._quotes is None or self._nursery is None:
            _refuse(channel, message, NotAllowed(NOT_ATTESTING))
            return
        place = _Place(channel.peer, network_of(channel.host), self._is_client(channel.peer))
        if self._is_full(place):
            _refuse(channel, message, Busy("others are waiting for quotes; ask again in a while"))
        else:
            self._asking[place] += 1
            self._nursery.start_soon(self._answer, channel, message, self._quotes, place)

    def _is_full(self, wanted: _Place) -> bool:
        """Whether there is no place for one more question like this."""

        def count(like: Callable[[_Place], bool]) -> int:
            return sum(number for place, number in self._asking.items() if like(place))

        alike = count(lambda place: (place.network, place.client) == (wanted.network, wanted.client))
        places = WAITING if wanted.client else WAITING - FOR_CLIENTS
        return (
            count(lambda place: place.peer == wanted.peer) >= PER_PEER
            or alike >= PER_NETWORK
            or self._asking.total() >= places
        )

    async def _answer(self, channel: Channel, message: Attest, quotes: QuoteSource, place: _Place) -> None:
        try:
            with ends_alone(log, f"an attestation for {channel.peer}"), suppress(ChannelClosed):
                try:
                    with trio.fail_after(ANSWER_WITHIN_S):
                        make = partial(self._made, quotes, message.nonce)
                        data = await trio.to_thread.run_sync(
                            make, limiter=self._limiter, abandon_on_cancel=True
                        )
                    channel.send_now(Attested(message.number, len(data)), data)
                except trio.TooSlowError:
                    _refuse(channel, message, Busy("this node's hardware gives no quote in time"))
                except ShoalError as error:
                    log.warning("no attestation: %s", error.message)
                    _refuse(channel, message, error)
        finally:
            self._asking[place] -= 1
            self._asking += Counter()  # without those that ask nothing any more

    def _made(self, quotes: QuoteSource, nonce: bytes) -> bytes:
        binding = self._bind(nonce)
        quote = quotes.quote(binding.report_data)
        return Evidence(quote.kind, binding, quote.data, self._collateral.beside(quote)).encoded()


def _refuse(channel: Channel, message: Attest, error: ShoalError) -> None:
    with suppress(ChannelClosed):
        channel.reply(Attested(message.number, 0, shorten(error.message)))
