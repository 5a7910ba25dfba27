"""How much of a swarm a member hears, says and keeps.

A small swarm is one: everybody hears of everybody, by the rules of the product. In a large one, by rules that
are tried here before the product has them, each model has a topic of its own, and a member keeps a part of
its model's peers.
"""

from __future__ import annotations

from shoal.swarm import gossip_rate
from shoal.swarm.announcement import MAX_LIFETIME_S
from shoal.swarm.anti_entropy import MAX_PEERS
from shoal.testing.sim.scale.plan import ANNOUNCE_S, EXPIRY_S

PARTIAL_FROM = 320
"""Peers from which on a swarm is a large one."""
MODEL_STEADY, SWARM_STEADY = 12, 4
"""Words in ``ANNOUNCE_S`` on the topic of a model, and on the swarm's in a large one."""
VIEW_PEERS = 256
"""Peers of its model that a member of a large swarm keeps."""
HEARD_PEERS = 512
"""Peers whose last words it counts to know what its model lacks: unlike those whom it keeps, they are drawn
by nothing but when they spoke."""
ENTRY_PEERS = 8
"""Peers of each other model that it keeps."""
ENTRIES_ASKED, VIEW_WITHIN_S = 4, 2.5
"""Of those, so many are asked at once where a model is looked for, and for so long at most."""
PARTS = 8
"""Of a model, of which a view keeps as many peers each."""


def speaking_period_s(peers: int, *, partial: bool) -> float:
    """Seconds between two words of one peer, where so many speak on the topic."""
    if partial:
        return ANNOUNCE_S * max(1.0, peers / MODEL_STEADY)
    return gossip_rate.refresh_s(ANNOUNCE_S, peers)


def word_lifetime_s(peers: int, *, partial: bool) -> float:
    """Seconds for which a word holds."""
    if partial:
        return min(EXPIRY_S * max(1.0, speaking_period_s(peers, partial=True) / ANNOUNCE_S), MAX_LIFETIME_S)
    return gossip_rate.lifetime_s(EXPIRY_S, peers)


def view_peers(*, partial: bool) -> int:
    """Peers of its model, or of a small swarm, that a member keeps."""
    return VIEW_PEERS if partial else MAX_PEERS
