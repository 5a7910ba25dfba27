"""A client in the name of its machine's node: it shows what that is owed, and signs for what was given.

It signs after a session, not in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec
import trio

from shoal.errors import ChannelClosed, ShoalError
from shoal.ledger.credits.acknowledgement import acknowledge
from shoal.ledger.credits.claim import claim
from shoal.ledger.credits.credit_file import CreditFile
from shoal.net.channel import Channel
from shoal.net.identity import Identity
from shoal.types import PeerId
from shoal.wire.paying import Acknowledged, ShownCredit

RENEW_S = 60.0
"""How long what is shown may be old."""

log = logging.getLogger(__name__)


class Acknowledging:
    """See the module.

    Args:
        identity: of this machine's node.
        client: the peer that asks.
        wall: seconds since the epoch.
    """

    def __init__(
        self, file: CreditFile, identity: Identity, client: PeerId, wall: Callable[[], float]
    ) -> None:
        self._file = file
        self._identity = identity
        self._client = client
        self._wall = wall
        self._shown: ShownCredit | None = None
        self._shown_at = 0.0
        self._reading = trio.Lock()

    async def shown(self) -> ShownCredit:
        """In whose name we ask, and what others have signed for that one.

        Raises:
            BadLedgerFile, OutOfResources: the file cannot be read.
        """
        async with self._reading:
            now = trio.current_time()
            if self._shown is None or now - self._shown_at > RENEW_S:
                kept = await trio.to_thread.run_sync(self._file.read)
                identity = self._identity
                self._shown = claim(identity.sign, identity.peer, self._client, kept.shown(), self._wall())
                self._shown_at = now
            return self._shown

    async def acknowledge(self, units: Mapping[PeerId, int], channels: Mapping[PeerId, Channel]) -> None:
        """Note what hops have served us, and sign for it to those that can be reached.

        The others hear of it the next time: what is signed is all that they ever gave.

        Args:
            units: tokens times blocks of each.
        """
        for peer, served in units.items():
            if peer == self._identity.peer or served < 1:
                continue  # what a machine does for itself is nobody's debt
            try:
                total = await trio.to_thread.run_sync(self._file.served_by, peer, served)
            except ShoalError as error:
                log.warning("what %s has served was not noted: %s", peer, error.message)
                continue
            channel = channels.get(peer)
            if channel is None or channel.closed:
                continue
            word = acknowledge(self._identity.sign, self._identity.peer, peer, total)
            with suppress(ChannelClosed):
                await channel.send(Acknowledged(msgspec.msgpack.encode(word)))
