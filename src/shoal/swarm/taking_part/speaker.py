"""What a member says of itself, and on which topics."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable

import msgspec

from shoal.errors import RemoteProtocolError
from shoal.net.network import Network
from shoal.swarm.announcement import Announcement, Served, seal
from shoal.swarm.clock import Clock
from shoal.swarm.directory import Directory
from shoal.swarm.views.size import SwarmSize
from shoal.trust.operator import OperatorStatement
from shoal.types import Digest
from shoal.wire.messages import AGENT

TOPIC = "/shoal/announce/1"
WARN_EVERY_S = 600.0
"""How often it is said that another process has our identity."""

log = logging.getLogger(__name__)


class Speaker:
    """Speaks for one member.

    Args:
        now: by a clock that only runs forwards.
        model_topic: where the peers of a model of a large swarm speak.
        operator: whose machine it is, if a node is to announce that.
    """

    def __init__(
        self,
        network: Network,
        directory: Directory,
        size: SwarmSize,
        clock: Clock,
        now: Callable[[], float],
        chance: random.Random,
        model_topic: Callable[[Digest], str],
        operator: OperatorStatement | None = None,
    ) -> None:
        self._network = network
        self._directory = directory
        self._size = size
        self._clock = clock
        self._now = now
        self._random = chance
        self._model_topic = model_topic
        self._operator = operator
        self._sequence = 0
        self._warn_at = -math.inf
        self._swarm_at = 0.0
        """When it is its turn on the topic of a large swarm."""
        self._turn_of: Digest | None = None
        """The model that it has its turns for."""
        self._may_be_early = False
        """Whether it may say there what is new before its turn: once after each."""

    def wait_turn(self) -> None:
        """The swarm has become a large one, or this member serves another model: it speaks to all
        after a while, drawn by chance. Or everybody who comes and goes would, however many these are."""
        self._swarm_at = self._now() + self._random.random() * self._size.swarm_rest_s()
        self._may_be_early = False

    async def publish(self, served: Served | None, *, news: bool = True) -> bytes:
        """Say what this node serves; the word as it travels.

        Args:
            news: it is not the same again: whoever hears the swarm's topic alone is to know soon.
        """
        wall = self._clock.wall()
        # Milliseconds, so that numbers rise over restarts without a file; and they never go back with the
        # clock.
        self._sequence = max(self._sequence + 1, round(wall * 1000))
        address = self._network.address
        if served is not None:
            self._size.serves = Digest(served.digest)
            served = self._operated(served, wall)
        announcement = Announcement(
            self._network.peer,
            self._sequence,
            wall,
            wall + self._size.lifetime_s(),
            address.libp2p[:16],
            address.direct[:16],
            served,
            AGENT,
            self._size.said(),
        )
        raw = seal(announcement, self._network.sign)
        if served is not None:
            # Our own too: others also hear of us when they compare directories with us.
            self._directory.take(announcement, raw, self._now(), wall)
        else:
            self._directory.drop(self._network.peer, self._now())
        for topic in self._topics(news):
            await self._network.publish(topic, raw)
        return raw

    def _operated(self, served: Served, wall: float) -> Served:
        """What is announced, with whose machine it is, as long as that holds: others refuse what is over."""
        if self._operator is None:
            return served
        try:
            self._operator.check_dates(wall)
        except RemoteProtocolError as error:
            log.warning("this node announces its operator no more: %s", error.message)
            self._operator = None
            return served
        return msgspec.structs.replace(served, operator=self._operator)

    def _topics(self, news: bool) -> list[str]:
        """Where this member speaks now."""
        model, now = self._size.serves, self._now()
        if not self._size.partial or model is None:
            return [TOPIC]
        if model != self._turn_of:
            self._turn_of = model
            self.wait_turn()
        # Nearer than drawn, if since then somebody has come who hears nothing else.
        self._swarm_at = min(self._swarm_at, now + self._size.swarm_rest_s() * 1.1)
        # Those of other models know a few of this one, by a word in a while.
        in_turn = now >= self._swarm_at
        if not in_turn and not (news and self._size.overlapping and self._may_be_early):
            return [self._model_topic(model)]
        self._may_be_early = in_turn
        self._swarm_at = now + self._size.swarm_rest_s() * self._random.uniform(0.9, 1.1)
        return [self._model_topic(model), TOPIC]

    def hear_of_ourselves(self, announcement: Announcement) -> None:
        """Warn of another process with our key: of what we say ourselves we know."""
        now = self._now()
        if not 0 < self._sequence < announcement.sequence or now < self._warn_at:
            return
        self._warn_at = now + WARN_EVERY_S
        log.warning(
            "another process announces itself with this node's identity, %s, at %s: peers reach now the one, "
            "now the other, and sessions on both break. End one of them, or give it an identity of its own "
            "(another SHOAL_HOME). Whoever has the key passes for this node: if nobody of yours copied it, "
            "move it away and make another: shoal identity create",
            announcement.peer,
            ", ".join((*announcement.address.direct, *announcement.address.libp2p)) or "no address",
        )
