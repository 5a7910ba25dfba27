"""Who may have a model's weights: who serves it, who has told the DHT so, and whom we are connected to."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence

import trio

from shoal.errors import ShoalError
from shoal.models.store.catalogue import full_name
from shoal.models.store.folder_names import comparable_name
from shoal.sharing.wrong_peers import WrongPeers
from shoal.swarm.member import DIAL_WITHIN_S, Member, manifest_key
from shoal.types import Digest, PeerAddress

ASK_DHT_EVERY_S = 15.0
CONNECTED = 8
"""Connected peers that serve nothing and are asked all the same: one may only share."""
LOOK_EVERY_S = 0.2

log = logging.getLogger(__name__)


class PeerFinder:
    """Finds peers that have one model."""

    def __init__(self, member: Member, digest: Digest, wrong: WrongPeers) -> None:
        self._member = member
        self._digest = digest
        self._wrong = wrong
        self._asked_at = -math.inf
        self._provided: Sequence[PeerAddress] = ()

    async def find(self) -> list[PeerAddress]:
        """Those who are known now, who serves the model first; not who has sent something wrong."""
        serving = self._serving()
        # The DHT takes seconds: it is asked first only where nobody is known otherwise.
        if not serving or trio.current_time() - self._asked_at > ASK_DHT_EVERY_S:
            await self._ask_dht()
        connected = [PeerAddress(c.peer) for c in self._member.network.connections()[:CONNECTED]]
        found: dict[str, PeerAddress] = {}
        for address in (*serving, *self._provided, *connected):
            found.setdefault(address.peer, address)
        ours = self._member.network.peer
        return [a for a in found.values() if a.peer != ours and a.peer not in self._wrong]

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
