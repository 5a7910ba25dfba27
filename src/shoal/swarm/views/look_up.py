"""Finding who serves a model that was not asked for before: by those who are known of it, else by the DHT."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Protocol

import trio

from shoal.errors import ChannelClosed, DeadlineExceeded, NotAllowed, RemoteProtocolError
from shoal.net.network import Network
from shoal.swarm.directory import Directory
from shoal.swarm.views.peer_sample import public_network
from shoal.swarm.views.rules import ENTRIES_ASKED, LOOK_UP_WITHIN_S, VIEW_WITHIN_S
from shoal.types import Digest, PeerAddress, PeerId

DIAL_WITHIN_S = 5.0
PROVIDERS_ASKED = 16
PROVIDERS_WITHIN_S = 3.0
"""What the DHT has of a look-up's time in a large swarm; the rest is for those whom it names."""


class AskForModel(Protocol):
    """Hears from a connected peer whom it knows: of a model, or of everybody."""

    def __call__(self, peer: PeerId, digest: Digest | None = None) -> Awaitable[None]: ...


def manifest_key(digest: Digest) -> bytes:
    """The DHT key of a model: the 32 bytes of its digest, which are the sha2-256 of its manifest."""
    return bytes.fromhex(digest.removeprefix("sha256:"))


class ModelLookUp:
    """Asks for one member."""

    def __init__(
        self,
        network: Network,
        directory: Directory,
        now: Callable[[], float],
        ask: AskForModel,
        chance: random.Random,
    ) -> None:
        self._network = network
        self._directory = directory
        self._now = now
        self._ask = ask
        self._random = chance

    async def in_part(self, digest: Digest) -> None:
        """Hear of a model's peers in a large swarm, for as long as a look-up may take."""
        told: list[PeerId] = []
        with trio.move_on_after(LOOK_UP_WITHIN_S):
            with trio.move_on_after(VIEW_WITHIN_S):  # one that is silent holds up nobody who has heard others
                await self._from_entries(digest, told)
            if told:
                return
            with suppress(ChannelClosed, DeadlineExceeded):  # so nobody is found by it
                await self.by_providers(digest, PROVIDERS_WITHIN_S, digest)

    async def _from_entries(self, digest: Digest, told: list[PeerId]) -> None:
        """Ask some of those who are known to serve a model; who has answered goes into ``told``."""

        async def hear(address: PeerAddress) -> None:
            if await self._hear(address, digest):
                told.append(address.peer)

        async with trio.open_nursery() as nursery:
            for address in self._entries(digest):
                nursery.start_soon(hear, address)

    def _entries(self, digest: Digest) -> list[PeerAddress]:
        """Whom to ask: by chance, and first one of each network."""
        own = self._network.peer
        known = [a.address for a in self._directory.serving(digest, self._now()) if a.peer != own]
        self._random.shuffle(known)
        first = {public_network(address) or address.peer: address for address in known}
        others = [address for address in known if address not in first.values()]
        return [*first.values(), *others][:ENTRIES_ASKED]

    async def by_providers(self, digest: Digest, within_s: float, only: Digest | None = None) -> None:
        """Ask the DHT who serves a model, and hear from those who are not in the directory, nor lost.

        Args:
            within_s: how long the DHT has.
            only: of whose peers they are to tell; of everybody without.

        Raises:
            ChannelClosed, DeadlineExceeded: the DHT does not answer.
        """
        providers = await self._network.find_providers(manifest_key(digest), deadline_s=within_s)
        known = self._directory
        async with trio.open_nursery() as nursery:
            for provider in providers[:PROVIDERS_ASKED]:
                here = provider.peer == self._network.peer or known.get(provider.peer) is not None
                if not here and not known.is_lost(provider.peer):
                    nursery.start_soon(self._hear, provider, only)

    async def _hear(self, address: PeerAddress, digest: Digest | None) -> bool:
        """Hear from one peer whom it knows; whether it has told."""
        with suppress(ChannelClosed, DeadlineExceeded, RemoteProtocolError, NotAllowed):
            await self._network.approach(address, deadline_s=DIAL_WITHIN_S)
            await self._ask(address.peer, digest)
            return True
        return False
