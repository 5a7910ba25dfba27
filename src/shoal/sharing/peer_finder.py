"""Who may have a model's weights: who serves it, who has told the DHT so, and whom we are connected to."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import msgspec
import trio

from shoal.errors import RemoteProtocolError, ShoalError
from shoal.models.store.catalogue import full_name
from shoal.models.store.folder_names import comparable_name
from shoal.sharing.weight_server import ADDRESS_PROTOCOL
from shoal.sharing.wrong_peers import WrongPeers
from shoal.swarm.member import Member
from shoal.swarm.views.look_up import DIAL_WITHIN_S, manifest_key
from shoal.types import Digest, PeerAddress, PeerId
from shoal.wire.fields import NextHop

ASK_DHT_EVERY_S = 15.0
ASKED_AT_ONCE = 16
ASKED_LIMIT = 1024
"""Peers that are not asked again; past it, all are."""
LOOK_EVERY_S = 0.2
HEARD_WITHIN_S = 3.0
"""How long a model's name is waited for before a hub is asked: those whom we know have said it by then."""

log = logging.getLogger(__name__)


class PeerFinder:
    """Finds peers that have one model."""

    def __init__(self, member: Member, digest: Digest, wrong: WrongPeers) -> None:
        self._member = member
        self._digest = digest
        self._wrong = wrong
        self._begun = False
        self._asked_at = -math.inf
        self._provided: Sequence[PeerAddress] = ()
        self._asked: set[PeerId] = set()
        self._told: dict[PeerId, PeerAddress] = {}
        """Where peers are that announce nothing, as they say themselves."""

    async def find(self) -> list[PeerAddress]:
        """Those who are known now, who serves the model first; not who has sent something wrong."""
        serving = self._serving()
        # To ask others takes seconds: that comes first only where nobody is known otherwise.
        if not serving or self._begun:
            await self._ask_dht()
            await self._ask_addresses({a.peer for a in serving})
        self._begun = True
        found = {a.peer: a for a in (*serving, *self._told.values())}
        left_out = self._wrong.peers() | {self._member.network.peer}
        return [a for a in found.values() if a.peer not in left_out]

    async def _ask_addresses(self, known: set[str]) -> None:
        """Ask peers that announce nothing where they can be reached, each once: who shares answers."""
        connected = [c.peer for c in self._member.network.connections()]
        others = dict.fromkeys([*(a.peer for a in self._provided), *connected])
        asked = [peer for peer in others if peer not in known | self._asked][:ASKED_AT_ONCE]
        self._asked |= set(asked)
        if len(self._asked) > ASKED_LIMIT:
            self._asked = set(asked)
            self._told.clear()  # else it grows as long as new peers come; those who share are asked again
        provided = {a.peer: a for a in self._provided}

        async def ask(peer: PeerId) -> None:
            with suppress(ShoalError):
                if peer in provided and peer not in connected:
                    await self._member.network.approach(provided[peer], deadline_s=DIAL_WITHIN_S)
                raw = await self._member.network.request(
                    peer, ADDRESS_PROTOCOL, b"", deadline_s=DIAL_WITHIN_S
                )
                self._told[peer] = read_address(peer, raw)

        async with trio.open_nursery() as nursery:
            for peer in asked:
                nursery.start_soon(ask, peer)

    def _serving(self) -> list[PeerAddress]:
        directory = self._member.directory
        return [a.address for a in directory.serving(self._digest, self._member.now())]

    async def _ask_dht(self) -> None:
        if trio.current_time() - self._asked_at <= ASK_DHT_EVERY_S:
            return
        self._asked_at = trio.current_time()
        try:
            key = manifest_key(self._digest)
            self._provided = await self._member.network.find_providers(key, deadline_s=DIAL_WITHIN_S)
        except ShoalError as error:
            log.debug("the DHT was not asked: %s", error.message)


def read_address(peer: PeerId, raw: bytes) -> PeerAddress:
    """Where a peer says that it can be reached.

    Raises:
        RemoteProtocolError: it says nothing of the kind, or speaks of another.
    """
    try:
        hop = msgspec.msgpack.decode(raw, type=NextHop)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RemoteProtocolError(f"{peer} does not say where it is: {error}") from error
    if hop.peer != peer:
        raise RemoteProtocolError(f"{peer} says where {hop.peer} is")
    return hop.address()


def name_served(member: Member, digest: Digest, asked: str, kind: str) -> str:
    """What to call something that comes from peers: as they do who serve it.

    Args:
        asked: by which it was asked for: a name, or the digest.
        kind: what it is, for one whose name nobody knows.
    """
    shapes = member.directory.models(member.now())
    served = next((shape.name for shape in shapes if shape.digest == digest), None)
    return served or (f"{kind}-{digest[7:15]}" if asked == digest else asked)


async def served_as(member: Member, name: str, wait_s: float) -> Digest | None:
    """The digest of what peers serve under a name; of several, the one that most of them do.

    Args:
        wait_s: how long to wait until somebody is heard of who does.
    """
    wanted = comparable_name(full_name(name))
    with trio.move_on_after(wait_s):
        while True:
            found = Counter(
                a.served.digest
                for a in member.alive()
                if a.served is not None and comparable_name(a.served.model) == wanted
            )
            if found:
                return Digest(min(found, key=lambda digest: (-found[digest], digest)))
            await trio.sleep(LOOK_EVERY_S)
    return None
