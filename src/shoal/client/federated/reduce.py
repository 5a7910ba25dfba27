"""The mean of a round's updates, each part by its owner: all-reduce without a server.

Each member sends every other one its part of the update, waits for the parts of those that it owns, and sends
the mean of them to all. Whoever has not sent its part in time, or sent what no honest member sends, is left
out of that part and named; where an owner gives no mean, its part of the adapter stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from shoal.client.federated.run_peers import RunPeers
from shoal.training.federated.int8 import STRETCHED, pack_int8, unpack_int8
from shoal.training.federated.layout import part_bounds
from shoal.training.federated.means import UpdateVector, mean_fault, part_radius, robust_mean, update_fault
from shoal.training.federated.received import AcceptedPlan
from shoal.training.federated.terms import FederatedTerms
from shoal.types import PeerId
from shoal.wire.federating import UpdatePart
from shoal.wire.messages import shorten

LeftOutMembers = tuple[tuple[str, str], ...]


@dataclass
class ReducedRound:
    """What a round came to at one member."""

    members: list[PeerId]
    mean: UpdateVector
    """Zeros where an owner gave none."""
    left_out: dict[PeerId, str] = field(default_factory=dict[PeerId, str])
    """Whose update, or a part of it, does not count, and why."""
    missing: dict[PeerId, str] = field(default_factory=dict[PeerId, str])
    """Owners whose part stays as it was, and why."""


class RoundReduction:
    """One round at one member.

    Args:
        update: of this member, float32 ``[size]``.
        until: when parts must be there, on trio's clock; means have as long again.
    """

    def __init__(
        self,
        peers: RunPeers,
        accepted: AcceptedPlan,
        terms: FederatedTerms,
        update: UpdateVector,
        until: float,
    ) -> None:
        self._peers, self._board = peers, peers.board
        self._accepted, self._terms, self._until = accepted, terms, until
        self._update = update
        self._members = accepted.plan.peers
        self._bounds = part_bounds(terms.size, len(self._members))
        self._own = self._members.index(self._board.own)
        self._means_until = until + terms.part_s
        self._awaited = [peer for peer in self._members if peer != self._board.own]
        self._reduced = ReducedRound(self._members, np.zeros(terms.size, np.float32))

    async def run(self) -> ReducedRound:
        """The mean of all parts. Ends in time, whoever does not do its part."""
        await self._exchange()
        await self._peers.wait(self._means_until, self._has_all_means)
        self._take_means()
        return self._reduced

    async def _exchange(self) -> None:
        """Send every part to its owner, wait for those that are ours, and send their mean to all."""
        for index, peer in self._others():
            payload = self._packed(self._update[self._bounds[index]])
            self._peers.post(peer, self._part(index, "update", payload), payload, self._until)
        await self._peers.wait(self._until, self._has_all_parts)
        self._give_mean(self._reduce_own())

    def _others(self) -> list[tuple[int, PeerId]]:
        """The other members, with their places in the plan."""
        return [(index, peer) for index, peer in enumerate(self._members) if index != self._own]

    def _give_mean(self, mean: UpdateVector) -> None:
        """Send all members what our part comes to."""
        payload = self._packed(mean)
        # As the others read it, so that all have the same bits.
        self._reduced.mean[self._bounds[self._own]] = self._unpacked(payload, mean.size)
        why = tuple((peer, shorten(reason)) for peer, reason in self._reduced.left_out.items())
        message = self._part(self._own, "mean", payload, why)
        for _, peer in self._others():
            self._peers.post(peer, message, payload, self._means_until)

    def _reduce_own(self) -> UpdateVector:
        bound = self._bounds[self._own]
        size = bound.stop - bound.start
        radius = part_radius(self._terms.allowed, size, self._terms.size)
        came = self._board.parts("update")
        counted: list[UpdateVector] = []
        examples: list[int] = []
        for index, member in enumerate(self._accepted.plan.members):
            peer = PeerId(member.peer)
            if index == self._own:
                values, fault = self._update[bound], ""
            elif peer not in came or came[peer].message.index != self._own:
                values, fault = np.zeros(0, np.float32), "its part did not come in time"
            else:
                values = self._unpacked(came[peer].payload, size)
                fault = ""
            fault = fault or update_fault(values, size, radius)
            if fault:
                self._reduced.left_out[peer] = fault
            else:
                counted.append(values)
                examples.append(member.examples)
        if not counted:
            return np.zeros(size, np.float32)
        return robust_mean(self._terms.rule, counted, examples, radius)

    def _take_means(self) -> None:
        came = self._board.parts("mean")
        for index, peer in enumerate(self._members):
            if index == self._own:
                continue
            bound = self._bounds[index]
            size = bound.stop - bound.start
            if peer not in came or came[peer].message.index != index:
                self._reduced.missing[peer] = "the mean of its part did not come in time"
                continue
            values = self._unpacked(came[peer].payload, size)
            radius = part_radius(self._terms.allowed, size, self._terms.size)
            if self._terms.compress == "int8":
                radius *= STRETCHED
            if fault := mean_fault(values, size, radius):
                self._reduced.missing[peer] = fault
                continue
            self._reduced.mean[bound] = values
            for other, why in came[peer].message.left_out:
                if PeerId(other) in self._members:
                    self._reduced.left_out.setdefault(PeerId(other), why)

    def _has_all_parts(self) -> bool:
        return self._has_all("update")

    def _has_all_means(self) -> bool:
        return self._has_all("mean")

    def _has_all(self, kind: str) -> bool:
        """Whether nobody is waited for any more: what is lost does not come."""
        came = self._board.parts(kind)
        return all(peer in came or peer in self._board.gone for peer in self._awaited)

    def _part(
        self, index: int, kind: Literal["update", "mean"], payload: bytes, left_out: LeftOutMembers = ()
    ) -> UpdatePart:
        """The header of a part of the owner at ``index``."""
        plan, run = self._accepted, self._board.run
        return UpdatePart(run, plan.plan.round, plan.hash, index, kind, len(payload), left_out)

    def _packed(self, values: UpdateVector) -> bytes:
        """A part as it travels."""
        return pack_int8(values) if self._terms.compress == "int8" else values.astype("<f4").tobytes()

    def _unpacked(self, payload: bytes, size: int) -> UpdateVector:
        """float32 as long as the part; of bytes that are none, another length."""
        if self._terms.compress == "int8":
            return unpack_int8(payload, size)
        if len(payload) % 4:
            return np.zeros(0, np.float32)
        return np.frombuffer(payload, "<f4").astype(np.float32)
