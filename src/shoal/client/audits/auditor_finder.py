"""Chooses who computes a hop's blocks again: who is least like those who were asked to compute them."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from shoal.client.audits.auditors import AuditJob, OtherIdentity, OwnAuditor, PeerAuditor, place_of
from shoal.client.ring.rings import Rings
from shoal.client.session import Session
from shoal.config import Settings
from shoal.errors import Busy, DigestMismatch, NoCoverage
from shoal.models.store.store import ModelStore
from shoal.trust.independence import Whereabouts, apart
from shoal.types import PeerId


class AuditorFinder:
    """All who may audit for one client.

    Args:
        identity: for asking peers; without one, only this machine audits.
    """

    def __init__(
        self, rings: Rings, settings: Settings, store: ModelStore, identity: OtherIdentity | None
    ) -> None:
        self._rings = rings
        self._settings = settings
        self._identity = identity
        self.own = OwnAuditor(settings, store)

    def peer(
        self, session: Session, job: AuditJob, tried: set[PeerId], near: Sequence[Whereabouts] = ()
    ) -> PeerAuditor | None:
        """Others who have the blocks: the least like those who were asked to compute, where there are any.

        Args:
            near: where those are who have audited it already: one that may be one with them confirms nothing.
        """
        if self._identity is None or any(hop.attested for hop in session.ring.route):
            return None  # what none but attested peers may see, no other is shown
        finder, shape = self._rings.finder, job.shape
        ring = {hop.address.peer for hop in session.ring.route}
        hops = [place_of(self._rings, hop.address) for hop in session.ring.route]
        now = trio.current_time()
        serving = finder.serving(shape, job.numerics.format)
        places = {PeerId(a.peer): place_of(self._rings, a.address) for a in serving}
        # The identity under which audits ask pays nobody.
        priced = {PeerId(a.peer) for a in serving if a.served is not None and a.served.price is not None}
        doubtful = {peer for peer in places if finder.reputation.distrusted(peer, now)}
        known = {peer for peer, at in places.items() if at.known and _beside(at, hops)}
        known |= {peer for peer, at in places.items() if _operated(at, hops)}
        beside = {peer for peer, at in places.items() if _beside(at, near) or _operated(at, near)}
        never = tried | doubtful | priced
        for avoid in (ring | known | beside, ring | beside, beside, ring | known, ring, set[PeerId]()):
            try:
                route = finder.find(shape, job.numerics, len(job.rows), never | avoid, span=job.span)
            except (NoCoverage, Busy, DigestMismatch):
                continue
            if not {hop.address.peer for hop in route} & (never | avoid):
                return PeerAuditor(route, self._rings.member, self._settings, self._identity)
        return None


def _operated(at: Whereabouts, others: Sequence[Whereabouts]) -> bool:
    """Whether a peer is announced to be of an operator of the others."""
    return any(at.operators & one.operators for one in others)


def _beside(at: Whereabouts, others: Sequence[Whereabouts]) -> bool:
    """Whether a peer may be one with some of the others.

    Of whom nobody knows where it is, nobody is known to be beside: it must not push others back.
    """
    return not all(apart(at, one) for one in others if one.known)
