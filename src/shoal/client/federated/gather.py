"""A step by DeMo: each member has the coefficients of all, and finds by itself which way they go.

Nobody owns a part, and no mean is sent. Whose coefficients have not come in time, or cannot be, is left out
and named. Members who have heard of others than most have another adapter then, and take that of most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import trio

from shoal.client.federated.reduce import ReducedRound
from shoal.client.federated.run_peers import RunPeers
from shoal.training.federated.demo.coefficients import Coefficients, read_coefficients
from shoal.training.federated.demo.direction import joint_direction
from shoal.training.federated.received import AcceptedPlan
from shoal.training.federated.terms import FederatedTerms
from shoal.types import PeerId
from shoal.wire.federating import UpdatePart

ON_THE_LOOP = 1 << 18
"""Elements of an adapter whose transforms are short enough for the event loop."""

_MadeT = TypeVar("_MadeT")


async def computed(size: int, make: Callable[[], _MadeT]) -> _MadeT:
    """What ``make`` gives, which takes as long as transforms of ``size`` elements do."""
    return make() if size <= ON_THE_LOOP else await trio.to_thread.run_sync(make)


class CoefficientGathering:
    """One step at one member.

    Args:
        taken: of this member's momentum.
        until: when the coefficients of others must be there, on trio's clock.
    """

    def __init__(
        self,
        peers: RunPeers,
        accepted: AcceptedPlan,
        terms: FederatedTerms,
        taken: Coefficients,
        until: float,
    ) -> None:
        self._peers, self._board = peers, peers.board
        self._accepted, self._terms, self._taken = accepted, terms, taken
        self._until = until
        self._members = accepted.plan.peers
        self._others = [peer for peer in self._members if peer != self._board.own]

    async def run(self) -> ReducedRound:
        """What all move by: nothing with the coefficients of fewer members than the terms ask for."""
        payload = self._taken.payload()
        for peer in self._others:
            index = self._members.index(peer)
            plan, run = self._accepted, self._board.run
            message = UpdatePart(run, plan.plan.round, plan.hash, index, "update", len(payload))
            self._peers.post(peer, message, payload, self._until)
        await self._peers.wait(self._until, self._has_all)
        return await computed(self._terms.size, self._reduce)

    def _has_all(self) -> bool:
        """Whether nobody is waited for any more: what is lost does not come."""
        came = self._board.parts("update")
        return all(peer in came or peer in self._board.gone for peer in self._others)

    def _reduce(self) -> ReducedRound:
        reduced = ReducedRound(self._members, np.zeros(self._terms.size, np.float32))
        came = self._board.parts("update")
        counted: dict[PeerId, Coefficients] = {}
        for peer in self._members:  # in this order at all of them
            if peer == self._board.own:
                counted[peer] = self._taken
            elif peer not in came:
                reduced.left_out[peer] = "its coefficients did not come in time"
            else:
                read = read_coefficients(came[peer].payload, self._terms.size, self._terms.form.kept)
                if isinstance(read, str):
                    reduced.left_out[peer] = read
                else:
                    counted[peer] = read
        direction = joint_direction(counted, self._terms.size)
        reduced.left_out |= direction.left_out
        if len(self._members) - len(reduced.left_out) >= self._terms.least:
            reduced.mean = direction.move(self._terms.rate_of(self._accepted.plan.round))
        return reduced
