"""What a member of a large swarm keeps: much of its own models, a little of the others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from shoal.swarm.announcement import Announcement, Served
from shoal.swarm.views.peer_sample import (
    OLD_SHARE,
    ChanceDraw,
    PeerSample,
    SecretRank,
    ViewedPeer,
    part_of,
    public_network,
)
from shoal.swarm.views.rules import MODELS_KNOWN, SEVERAL, ViewRules
from shoal.types import Digest, PeerId

HEARD_DRAWN = 256
"""Peers drawn from all who are heard, so as to know how many these are."""


class PartialView:
    """Which peers are kept, by their models; what they have said is in the directory.

    Args:
        key: of the ranks, known to nobody else.
    """

    def __init__(self, rules: ViewRules, key: bytes) -> None:
        self._rules = rules
        self._rank = SecretRank(key)
        self._models: dict[str, PeerSample] = {}
        """In the order in which they were heard of."""
        self._joined: frozenset[str] = frozenset()
        self._heard = ChanceDraw(HEARD_DRAWN)
        self._until: dict[PeerId, float] = {}
        """Of those drawn from all who are heard, when their words are over."""

    def of(self, digest: str) -> PeerSample | None:
        """Whom it keeps of a model, if anybody."""
        return self._models.get(digest)

    @property
    def joined(self) -> frozenset[str]:
        """The models that this member serves or asks for."""
        return self._joined

    def counts(self, digest: str) -> bool:
        """Whether several peers of a model are known, or this member serves or asks for it."""
        view = self._models.get(digest)
        several = min(SEVERAL, self._rules.entry_peers)
        return digest in self._joined or (view is not None and view.networks >= several)

    def heard(self, peer: PeerId, until: float) -> None:
        """A word has come, be its peer kept or not."""
        self._until[peer] = until
        left = self._heard.offer(peer, self._rank(peer))
        for other in (peer, left):
            if other is not None and other not in self._heard:
                self._until.pop(other, None)

    def heard_in_all(self, now: float) -> int:
        """How many peers there are whose words came here and are not over."""
        for peer in [peer for peer, until in self._until.items() if until <= now]:
            self.gone(peer)
        return self._heard.estimate

    def gone(self, peer: PeerId) -> None:
        """Somebody speaks no more."""
        if self._until.pop(peer, None) is not None:
            self._heard.remove(peer)

    def holds(self, peer: PeerId, digest: str) -> bool:
        """Whether a peer of a model is kept."""
        view = self._models.get(digest)
        return view is not None and peer in view

    def join(self, digests: Iterable[Digest]) -> list[str]:
        """From now on this member serves or asks for these models.

        Returns:
            Those of which more, or less, is to be kept now: nobody is, until they are offered again.
        """
        joined = frozenset(digests)
        changed = [digest for digest in self._joined ^ joined if self._models.pop(digest, None) is not None]
        self._joined = joined
        return changed

    def offer(
        self,
        announcement: Announcement,
        proven: Collection[PeerId] = (),
        neighbours: Collection[PeerId] = (),
    ) -> list[PeerId]:
        """Somebody was heard of who is not here; whether it is kept now, :meth:`holds` tells.

        Args:
            proven: those who have served this machine.
            neighbours: those to whom it is connected.

        Returns:
            Who is kept no more.
        """
        served = announcement.served
        if served is None:
            return []
        left: list[PeerId] = []
        view = self._models.get(served.digest)
        if view is None:
            if len(self._models) >= MODELS_KNOWN:
                forgotten = self._model_to_forget(served.digest)
                if forgotten == served.digest:
                    return []
                left = list(self._models.pop(forgotten))
            view = self._models[served.digest] = self._new(served.digest)
        return left + view.offer(self._viewed(announcement, served), proven, neighbours)

    def update(self, announcement: Announcement) -> None:
        """Somebody who is kept has said something new of the same model: it stays, wherever it now is."""
        served = announcement.served
        if served is not None and (view := self._models.get(served.digest)) is not None:
            view.update(self._viewed(announcement, served))

    def _viewed(self, announcement: Announcement, served: Served) -> ViewedPeer:
        peer = PeerId(announcement.peer)
        return ViewedPeer(peer, part_of(served), public_network(announcement.address), self._rank(peer))

    def remove(self, peer: PeerId, digest: str) -> None:
        """Somebody is gone, or serves something else."""
        view = self._models.get(digest)
        if view is not None:
            view.remove(peer)
            if not len(view):
                del self._models[digest]

    def _model_to_forget(self, newcomer: str) -> str:
        """Anybody makes up models: the older half stays, of the others and the newcomer one goes by rank."""
        others = [digest for digest in self._models if digest not in self._joined]
        newer = list(islice(others, int(len(others) * OLD_SHARE), None))
        among = newer if newcomer in self._joined else [*newer, newcomer]
        return max(among, key=self._rank, default=newcomer)

    def _new(self, digest: str) -> PeerSample:
        rules = self._rules
        if digest in self._joined:
            return PeerSample(rules.view_peers, rules.drawn_peers)
        return PeerSample(rules.entry_peers)
