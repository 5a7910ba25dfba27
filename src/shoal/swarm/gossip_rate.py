"""How often a member says what it serves, and for how long that holds. Pure.

Every word reaches everybody, so what a peer receives grows with how many speak, and how often. In a swarm of
up to ``STEADY_PEERS`` everyone speaks every ``announce_s`` and a word lives ``expiry_s``. In a larger one
both stretch with the swarm, so that however large it is, a peer hears as many words a second as in one of
``STEADY_PEERS``. That a peer has died is then no longer seen from its silence, but by its neighbours
(:mod:`shoal.swarm.failure.probe`), within one ``expiry_s`` in a swarm of any size.
"""

from __future__ import annotations

from shoal.swarm.announcement import MAX_LIFETIME_S

STEADY_PEERS = 16
"""Peers up to which everyone speaks every ``announce_s``."""
PART_PEERS = 128
"""Peers whose newest words two directories compare at once."""


def stretch(peers: int) -> float:
    """How much more rarely than ``announce_s`` each of ``peers`` peers speaks."""
    return max(1.0, peers / STEADY_PEERS)


def refresh_s(announce_s: float, peers: int) -> float:
    """Seconds between two announcements of one peer that has nothing new to say."""
    return min(announce_s * stretch(peers), MAX_LIFETIME_S / 3)


def lifetime_s(expiry_s: float, peers: int) -> float:
    """Seconds that an announcement holds."""
    return min(expiry_s * stretch(peers), MAX_LIFETIME_S)


def parts(peers: int) -> int:
    """In how many parts a directory of ``peers`` is compared with another."""
    return -(-max(1, peers) // PART_PEERS)
