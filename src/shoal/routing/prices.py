"""What a step through each candidate is expected to cost, for what the user wants. Pure.

``latency``
    Seconds of one step: the ways there, waiting there, computing there with one session more.
``throughput``
    Computing alone, the dearer the busier the peer is: ``WORTH ** utilisation``. Sessions that each take the
    cheapest route at such prices come close to the most that all peers can carry together (Awerbuch, Azar and
    Plotkin, 1993, "Throughput-competitive on-line routing").
``cost``
    First money, as each hop asks it for a block. Then what travels between machines: every hop takes and
    sends each token's hidden states once, all of one size, so the fewest hops are the fewest bytes. Among
    those the fastest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import Literal

import numpy as np

from shoal.routing.shortest_path import FloatArray, Prices, Ways, places_in_group
from shoal.types import PeerId, Span

Objective = Literal["latency", "throughput", "cost"]
"""What a route is to be the best for."""

HOP_S = 0.001
"""Work around one more hop: framing, encoding, two changes of thread."""
UNMEASURED_RTT_S = 0.002
"""Assumed where no round trip was measured at all; where some were, their median is."""
UNMEASURED_BLOCK_S = 0.001
"""Assumed time of a decode step through one block where no peer has measured any; else their median is."""
ROW_SHARE = 0.05
"""What one session more in a batch adds to a forward, as a share of a forward for one: 5 to 7% were measured
for the int8 and bf16 kernels with 8 and 32 rows."""
WORTH = 64.0
"""How much dearer a peer is that has nothing left than one that idles."""
MORE_THAN_ANY_STEP_S = 1e4
MONEY_S = 1e9
"""What the dearest price of a block counts as: what differs by a ten-thousandth of it outweighs a hop."""
JITTER = 0.1
"""By how much a candidate may seem dearer than it is, by chance, so that not all clients choose the same."""
MOST_WAYS = 8
"""Measured ways from one peer that are looked at."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A span on offer, as routing sees it. A peer has one."""

    peer: PeerId
    span: Span
    tokens_free: int
    """KV tokens that a session may still reserve."""
    step_s: float = 0.0
    """Time of a decode step through the whole span, as measured with the sessions there are; 0 if unknown."""
    rtt_s: float | None = None
    """Round trip between the client and it."""
    wait_s: float = 0.0
    """How long a step waits there for its turn."""
    sessions: int = 0
    """Sessions that it holds already."""
    tokens: int = 0
    """KV tokens that all its sessions together may take; 0 if unknown."""
    trust: float = 1.0
    """Share of steps that it is expected to do well, in (0, 1]: by its inverse it seems dearer."""
    rtts_s: Mapping[PeerId, float] = field(default_factory=dict[PeerId, float])
    """Round trips between it and other peers."""
    sending_s: float = 0.0
    """How long its link takes for what it sends on in a decode step; 0 if unknown."""
    price: int = 0
    """What it asks for a million tokens of a block, in the smallest unit of its chain's coin."""

    @property
    def utilisation(self) -> float:
        """How busy it is, 0 to 1: by its KV, or by how long steps wait, whichever says more.

        A queue with a steady service time S makes who comes wait for ``ρ / (1 - ρ) × S / 2`` (M/D/1).
        """
        held = 1 - self.tokens_free / self.tokens if self.tokens else 0.0
        waiting = 2 * self.wait_s / (2 * self.wait_s + self.step_s) if self.step_s else 0.0
        return min(1.0, max(held, waiting))


def price(
    candidates: Sequence[Candidate],
    objective: Objective,
    rng: Random | None,
    segments: Sequence[float] | None = None,
    affinity: bytes = b"",
) -> Prices:
    """What each candidate costs. With ``rng`` each seems up to ``JITTER`` dearer, by chance.

    Args:
        affinity: with it, it is by this and no chance how much dearer each seems (rendezvous hashing, Thaler
            and Ravishankar, 1998): whoever has the same finds the same peer of several that are alike.
        segments: what each block is worth in usual ones, where they are the segments of a graph. Its client
            carries everything from hop to hop, so ways between peers count for nothing. ``None`` for a
            language model, whose blocks are alike and whose route is a ring.
    """
    block, stage, near = _block_s(candidates, segments), _stage_s(candidates), _near_s(candidates)
    ways, leg = (_ways(candidates), near / 2) if segments is None else (_ways(()), near)
    work = None if segments is None else np.array(segments, np.float64)
    if objective == "throughput":
        busy = np.array([candidate.utilisation for candidate in candidates])
        block = block * WORTH**busy
        stage = np.full(len(candidates), HOP_S)
        near = leg = np.zeros(len(candidates))
        ways = _ways(())
    elif objective == "cost":
        stage = stage + MORE_THAN_ANY_STEP_S
    if rng is not None or affinity:
        chance = [_affine(affinity, c.peer) if affinity or rng is None else rng.random() for c in candidates]
        dearer = 1 + JITTER * np.array(chance)
        block, stage, near, leg = block * dearer, stage * dearer, near * dearer, leg * dearer
    if objective == "cost":
        block = block + _money_s(candidates)  # after the chance: nobody is to pay more by it
    return Prices(block, stage, near, leg, ways, work)


def _affine(affinity: bytes, peer: PeerId) -> float:
    """A number in [0, 1) that follows from both."""
    made = hashlib.blake2b(peer.encode(), digest_size=8, key=affinity).digest()
    return int.from_bytes(made) / 2**64


def within_price(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """Those that ask ``most`` for a million tokens of a block, or less."""
    return [candidate for candidate in candidates if candidate.price <= most]


def worth_of(span: Span, segments: Sequence[float] | None) -> float:
    """How many usual blocks a span is worth; ``segments`` as :func:`price` has it."""
    return float(len(span) if segments is None else sum(segments[span.start : span.end]))


def _block_s(candidates: Sequence[Candidate], segments: Sequence[float] | None) -> FloatArray:
    """Computing of a usual block in a step, with one session more in the batch."""
    worth = [worth_of(c.span, segments) for c in candidates]
    measured = [c.step_s / w for c, w in zip(candidates, worth, strict=True) if c.step_s]
    usual = median(measured) if measured else UNMEASURED_BLOCK_S
    each = [
        (c.step_s / w if c.step_s else usual)
        * (1 + ROW_SHARE * c.sessions)
        / (1 + ROW_SHARE * max(0, c.sessions - 1))
        / c.trust
        for c, w in zip(candidates, worth, strict=True)
    ]
    return np.array(each)


def _money_s(candidates: Sequence[Candidate]) -> FloatArray:
    """What each asks for a block, as a share of the dearest, in seconds that outweigh all others."""
    dearest = max((candidate.price for candidate in candidates), default=0)
    return np.array([MONEY_S * c.price / dearest if dearest else 0.0 for c in candidates])


def _stage_s(candidates: Sequence[Candidate]) -> FloatArray:
    """Once at each: the work around a hop, waiting, and sending on what comes of it."""
    measured = [c.sending_s for c in candidates if c.sending_s]
    usual = median(measured) if measured else 0.0
    return np.array([(HOP_S + c.wait_s + (c.sending_s or usual)) / c.trust for c in candidates])


def _near_s(candidates: Sequence[Candidate]) -> FloatArray:
    """One way between the client and each; from one that is hardly trusted, being near counts for little."""
    measured = [c.rtt_s for c in candidates if c.rtt_s is not None]
    usual = median(measured) if measured else UNMEASURED_RTT_S
    return np.array([(usual if c.rtt_s is None else c.rtt_s) / 2 / c.trust for c in candidates])


def _ways(candidates: Sequence[Candidate]) -> Ways:
    """The ways between peers that one of them has measured; where both have, the longer.

    Each peer's nearest ``MOST_WAYS`` are looked at: whoever claims to be near to everybody slows nobody down.
    """
    count = len(candidates)
    number = {candidate.peer: i for i, candidate in enumerate(candidates)}
    said = [
        (here, there, rtt_s)
        for here, candidate in enumerate(candidates)
        for peer, rtt_s in candidate.rtts_s.items()
        if (there := number.get(peer, here)) != here
    ]
    if not said:
        return Ways(np.empty(0, np.intp), np.empty(0, np.intp), np.empty(0))
    here, there, rtt_s = np.array(said).T
    pair = np.minimum(here, there) * count + np.maximum(here, there)
    known, which = np.unique(pair, return_inverse=True)
    seconds = np.zeros(len(known))
    np.maximum.at(seconds, which, rtt_s / 2)
    order = np.argsort(seconds)
    low, high = np.divmod(known[order].astype(np.intp), count)
    both = np.concatenate([low, high])
    kept = (places_in_group(both, count) < MOST_WAYS).reshape(2, -1).all(axis=0)
    low, high, seconds = low[kept], high[kept], seconds[order][kept]
    return Ways(np.concatenate([low, high]), np.concatenate([high, low]), np.concatenate([seconds, seconds]))
