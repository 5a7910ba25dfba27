"""Whether the swarm is a large one to a member, looked at again and again; what follows for what it keeps."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable

from shoal.swarm import gossip_rate
from shoal.swarm.directory import Directory
from shoal.swarm.views import rules
from shoal.swarm.views.census import Census, take_census
from shoal.swarm.views.rules import HEEDED_SHARE, MODELS_JOINED, REST_SHARE, ViewRules
from shoal.types import Digest


class SwarmSize:
    """How large the swarm is, and which of its models are this member's.

    Args:
        announce_s: as the member has it, as ``expiry_s``.
        now: by a clock that only runs forwards.
    """

    def __init__(
        self,
        view_rules: ViewRules,
        directory: Directory,
        announce_s: float,
        expiry_s: float,
        now: Callable[[], float],
    ) -> None:
        self._rules = view_rules
        self._directory = directory
        self._announce_s = announce_s
        self._expiry_s = expiry_s
        self._now = now
        self._census = Census()
        self._changed_at = -math.inf
        self._asked: OrderedDict[Digest, None] = OrderedDict()
        self.serves: Digest | None = None
        """The model that this member announces."""

    @property
    def partial(self) -> bool:
        """Whether it is a large one."""
        return self._directory.view is not None

    @property
    def overlapping(self) -> bool:
        """Whether somebody is known who hears the swarm's topic alone, of a swarm that is a large one."""
        return self.partial and self._census.overlapping

    @property
    def peers(self) -> int:
        """In all, as far as is known."""
        return self._census.count.estimated if self.partial else len(self._directory)

    @property
    def joined(self) -> frozenset[Digest]:
        """The models of whose topics this member is, of a large swarm."""
        return self._own if self.partial else frozenset()

    @property
    def _own(self) -> frozenset[Digest]:
        """The models that this member serves or asks for."""
        return frozenset([*self._asked, *([self.serves] if self.serves else [])])

    def of(self, digest: str) -> int:
        """Peers of a model, as far as is known; at least one."""
        return self._census.of(digest)

    def knows(self, digest: Digest) -> bool:
        """Whether this member knows who serves a model, and not only a few of them."""
        return not self.partial or digest in self.joined

    def may_join(self, digest: Digest) -> bool:
        """Whether it may ask for one more model, and none goes for it."""
        return digest not in self._asked and len(self._asked) < MODELS_JOINED - 1

    def asks(self, digest: Digest) -> bool:
        """This machine asks for a model, or serves it soon; whether more of its peers are to be looked up."""
        fresh = digest not in self._asked and digest != self.serves
        self._asked[digest] = None
        self._asked.move_to_end(digest)
        if len(self._asked) >= MODELS_JOINED:
            self._asked.popitem(last=False)
        if self.partial:
            self._directory.join(self.joined)
        return fresh and self.partial

    def look(self) -> None:
        """See how large the swarm is now, and keep what is to be kept of it."""
        directory, now = self._directory, self._now()
        few = len(directory) < self._rules.whole_below * HEEDED_SHARE
        if few and not self.partial:
            return  # nobody need be counted
        self._census = take_census(directory.alive(now), directory.view, now)
        partial = rules.is_partial(self._rules, self.partial, self._census.count)
        if partial != self.partial and now >= self._changed_at + REST_SHARE * self._announce_s:
            self._changed_at = now
            if partial:
                directory.keep_part(self._rules, self._own)
            else:
                directory.keep_all()
        if self.partial:
            directory.join(self.joined)

    def said(self) -> int:
        """What a word of this member says of its model's peers: see :attr:`Announcement.peers`."""
        return min(1 << 20, self.of(self.serves)) if self.partial and self.serves else 0

    def rest_s(self) -> float:
        """Seconds between two words of this member that has nothing new to say."""
        if not self.partial:
            return gossip_rate.refresh_s(self._announce_s, len(self._directory))
        own_s = rules.speaking_period_s(self._announce_s, self.of(self.serves or ""))
        return min(own_s, self.swarm_rest_s()) if self.overlapping else own_s

    def swarm_rest_s(self) -> float:
        """Seconds between two of its words on the topic of a large swarm."""
        if self.overlapping:
            return rules.overlap_period_s(self._announce_s, self.peers)
        return rules.swarm_period_s(self._announce_s, self.of(self.serves or ""), self._census.models)

    def lifetime_s(self) -> float:
        """Seconds for which its words hold."""
        if not self.partial:
            return gossip_rate.lifetime_s(self._expiry_s, len(self._directory))
        peers, entries = self.of(self.serves or ""), self._rules.entry_peers
        lifetime_s = rules.word_lifetime_s(self._expiry_s, peers, self._census.models, entries)
        if self.overlapping:
            lifetime_s = max(lifetime_s, gossip_rate.lifetime_s(self._expiry_s, self.peers))
        return lifetime_s

    def refresh_s(self, digest: str) -> float:
        """Seconds between two words of a peer of a model, as far as this member can tell."""
        if not self.partial:
            return gossip_rate.refresh_s(self._announce_s, len(self._directory))
        return rules.speaking_period_s(self._announce_s, self.of(digest))
