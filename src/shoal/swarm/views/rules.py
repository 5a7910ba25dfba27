"""When a swarm is a large one, and how much of it a member then hears, says and keeps. Pure.

A small swarm is one: everybody hears of everybody (:mod:`shoal.swarm.gossip_rate`). In a large one each model
has a topic of its own. A member listens to those of the models that it serves or asks for, keeps a part of
their peers (:mod:`.peer_sample`), and knows a few of each other model, which it asks when it needs more.
So what it hears, keeps and says goes by its models, and not by the swarm.

Words of each model come on the swarm's topic, too, a few in a while: by them others know those few. While
anybody is known who hears that topic alone (an older release, or a member to whom the swarm is still small),
words come there as often as in a small swarm, and of those with something new as many again at most.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from shoal.swarm import gossip_rate
from shoal.swarm.announcement import MAX_LIFETIME_S
from shoal.types import Digest

MODEL_STEADY, SWARM_STEADY = 11, 4
"""Words in ``announce_s`` on the topic of a model, and on the swarm's in a large one, of all peers."""
ENTRIES_ASKED, VIEW_WITHIN_S = 4, 2.5
"""So many peers of a model are asked at once for more, and for so long at most."""
LOOK_UP_WITHIN_S = 5.0
TOLD = 64
"""Words of peers that one of them is asked for."""
COMPARED = 12
"""Words that a comparison brings: of two views each has what the other lacks, and would not keep."""
MODELS_JOINED = 6
"""Models whose topics a member hears, two each: neighbours hear of sixteen subscriptions of one peer."""
MODELS_KNOWN = 256
SEVERAL = 4
"""Peers, in networks of their own, by which a model counts as one: a single identity is soon made up."""
FEW_SHARE = 1 / 4
"""Of all models that are known: so many count at least, be they of several peers or of few. So where all have
few, words on the swarm's topic are as many as in a small swarm, and no more."""
BELIEVED_EACH = 256
"""Peers of a model that are believed to be there for each that is known, for what they say may be a lie."""
HEEDED_SHARE = 1 / 4
"""Of the peers below which a swarm is small: so many must say that it is a large one to be heeded."""
REST_SHARE = 10
"""Of ``announce_s``: how long a swarm that has become large, or small, stays so."""


@dataclass(frozen=True, slots=True)
class ViewRules:
    """Numbers of peers."""

    partial_from: int = 320
    """From which on a swarm is a large one."""
    whole_below: int = 240
    """Below which it is a small one again."""
    view_peers: int = 256
    """Of each of its models, kept because they are unlike."""
    drawn_peers: int = 512
    """Of each of its models, drawn from all by nothing but chance."""
    entry_peers: int = 8
    """Of each other model."""


@dataclass(frozen=True, slots=True)
class SwarmCount:
    """How many peers there are, as far as a member knows."""

    known: int
    """Whose announcements it has."""
    partial: int
    """Of those, who say that the swarm is a large one to them."""
    estimated: int
    """In all, with those of whom others say that they are there."""


def is_partial(rules: ViewRules, before: bool, count: SwarmCount) -> bool:
    """Whether the swarm is a large one now.

    Args:
        before: whether it was until now: it does not change with every peer that comes or goes.
    """
    if before:
        return count.estimated >= rules.whole_below
    if count.known >= rules.partial_from:
        return True
    heeded = max(1, round(rules.whole_below * HEEDED_SHARE))
    most_say_so = count.partial >= heeded and count.partial * 2 > count.known
    return most_say_so and count.estimated >= rules.whole_below


def speaking_period_s(announce_s: float, peers: int) -> float:
    """Seconds between two words of one of ``peers`` peers of a model on its topic."""
    return min(announce_s * max(1.0, peers / MODEL_STEADY), MAX_LIFETIME_S / 3)


def swarm_period_s(announce_s: float, peers: int, models: int) -> float:
    """The same on the swarm's topic, where each of ``models`` models has as many words.

    It may be longer than a word lives: the peers of a model take turns, so that others always know some.
    """
    return announce_s * max(1.0, models * peers / SWARM_STEADY)


def overlap_period_s(announce_s: float, peers: int) -> float:
    """The same there, while some of ``peers`` peers of the swarm hear nothing else."""
    return min(announce_s * gossip_rate.stretch(peers), MAX_LIFETIME_S)


def word_lifetime_s(expiry_s: float, peers: int, models: int, entries: int) -> float:
    """Seconds for which a word of a large swarm holds.

    So long that it is not over before the next, nor others know less than ``entries`` peers of its model.
    """
    own = speaking_period_s(1.0, peers)
    others = models * min(entries, peers) / SWARM_STEADY
    return min(expiry_s * max(1.0, own, others), MAX_LIFETIME_S)


def model_topic(swarm: bytes, topic: str, digest: Digest) -> str:
    """The name of a model's topic beside the swarm's ``topic``.

    Args:
        swarm: what its members alone know, or nothing: the name tells nobody else which model it is.
    """
    named = hashlib.sha256(b"shoal model topic 1\n" + len(swarm).to_bytes(2, "big") + swarm)
    named.update(digest.encode())
    return f"{topic}/{named.hexdigest()[:32]}"
