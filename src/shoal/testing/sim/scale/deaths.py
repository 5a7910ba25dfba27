"""How long a death stays unnoticed, by the times that the product's probes and suspicions have. Pure."""

from __future__ import annotations

import math
from random import Random

from shoal.swarm.failure.detector import ASK_WITHIN_S
from shoal.swarm.failure.probe import ANSWER_LEAST_S, ANSWER_SHARE, ATTEMPTS, LOOK_SHARE, WATCHED
from shoal.swarm.failure.suspicion import GONE_SHARE, REFUTE_SHARE
from shoal.testing.sim.scale.plan import EXPIRY_S
from shoal.testing.sim.scale.population import VANISHES

CONNECTIONS = 9
"""Connections of a watcher, of which it looks after ``WATCHED`` in a round."""
REFUSED_S = 0.3
"""Until a machine that is there has said that there is no such peer."""
CLOSED_S = 0.1
"""Until a closed socket is seen."""


def noticed_s(watchers: int, end: int, chance: Random) -> list[float]:
    """Seconds until each of the watchers of one that died is sure enough to suspect it."""
    return [_noticed_s(end, chance) for _ in range(watchers)]


def _noticed_s(end: int, chance: Random) -> float:
    every_s = EXPIRY_S * LOOK_SHARE * 0.9
    next_look_s = chance.random() * every_s
    if end != VANISHES:  # its connection has ended: it is looked at in any case
        return CLOSED_S + next_look_s + ATTEMPTS * REFUSED_S
    rounds = math.floor(math.log(1 - chance.random()) / math.log(1 - WATCHED / CONNECTIONS))
    return next_look_s + rounds * every_s + ATTEMPTS * max(ANSWER_LEAST_S, EXPIRY_S * ANSWER_SHARE)


def believed_after_s(end: int) -> float:
    """Seconds from when somebody has heard a suspicion until it takes the peer for gone."""
    asked = ASK_WITHIN_S if end == VANISHES else REFUSED_S
    return min(EXPIRY_S * REFUTE_SHARE + asked, EXPIRY_S * GONE_SHARE)
