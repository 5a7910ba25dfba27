"""The sum of a round's updates of which nobody sees one: :mod:`shoal.training.federated.secret`.

Before the parts come shares, and after them it is settled who counts; the convener of the round collects what
each member has, and tells who is in all of the lists. Where it drops out, the round comes to nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np
import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shoal.client.federated.reduce import RoundReduction
from shoal.client.federated.run_peers import RunPeers
from shoal.errors import RemoteProtocolError
from shoal.training.federated.means import UpdateVector, bounded_weights, clip_norm, mean_fault, part_radius
from shoal.training.federated.received import AcceptedPlan
from shoal.training.federated.secret.fixed_point import FixedPoint, decode_fixed, encode_fixed
from shoal.training.federated.secret.secret_sum import SecretMember, threshold_of, unmasked_sum
from shoal.training.federated.terms import FederatedTerms
from shoal.types import PeerId
from shoal.wire.federating import SecretList, SecretMessage, SecretShare, SecretShown

STAGES = 8
"""Of a round, each of which has as long as parts have: shares and parts have three, until it is settled who
has them; what is shown, and means, one."""

log = logging.getLogger(__name__)


class SecretReduction(RoundReduction):
    """As :class:`RoundReduction`, with masks on all that leaves this machine.

    Args:
        key: of which this member's standing has told the public half.
    """

    def __init__(
        self,
        peers: RunPeers,
        accepted: AcceptedPlan,
        terms: FederatedTerms,
        update: UpdateVector,
        until: float,
        key: X25519PrivateKey,
    ) -> None:
        super().__init__(peers, accepted, terms, update, until)
        self._means_until = until + STAGES * terms.part_s
        self._convener = PeerId(accepted.plan.peer)
        self._context = self._board.run + accepted.hash
        self._keys = [self._key_of(peer) for peer in self._members]
        self._member = SecretMember(self._context, self._own, self._keys, key)
        self._weights = bounded_weights([member.examples for member in accepted.plan.members])

    async def _exchange(self) -> None:
        try:
            await self._sum()
        except RemoteProtocolError as error:
            # Whoever is to blame, nothing is known of the sum: the adapter stays as it is.
            log.warning("the secret sum of round %d fails: %s", self._accepted.plan.round + 1, error.message)

    async def _sum(self) -> None:
        """All stages. Raises RemoteProtocolError: too few are left, or what came does not fit."""
        began = trio.current_time()
        await self._share()
        held = frozenset(index for index in self._member.held if self._keys[index])
        among = await self._settle("held", "among", held, began)
        began = trio.current_time()
        if self._own in among:
            await self._send_masked(among)
        await self._wait_parts(among)
        came = self._masked_parts(among)
        counted = await self._settle("came", "counted", frozenset(came), began)
        if not counted <= among:
            raise RemoteProtocolError("who convened it counts members who do not take part")
        if self._own in among:
            self._show(among, counted)
        self._awaited = [self._members[index] for index in counted - {self._own}]
        self._end_in(2)  # the others have a stage for what is shown, and one for means
        if lacking := counted - came.keys():
            # The others may have what we lack, and have been shown by us what they need.
            raise RemoteProtocolError(f"of {len(lacking)} members who count no part is here")
        await self._reduce_secret({index: came[index] for index in counted}, among)
        self._end_in(1)

    async def _share(self) -> None:
        """Give every member a share of our secrets, and take those of the others."""
        shares = self._member.shares()
        for index, peer in self._others():
            self._tell(peer, partial(SecretShare, share=shares[index]))
        await self._stage(lambda: self._all_said("SecretShare"))
        for peer, said in self._board.secret("SecretShare").items():
            if isinstance(said, SecretShare) and peer in self._members:
                self._member.take_share(self._members.index(peer), said.share)

    async def _settle(
        self,
        asked: Literal["held", "came"],
        told: Literal["among", "counted"],
        own: frozenset[int],
        began: float,
    ) -> frozenset[int]:
        """Those who are in the lists of all members, as the convener says.

        Args:
            began: when what the lists are of began to come.

        Raises:
            RemoteProtocolError: it says nothing in time, or they are too few.
        """
        mine = partial(SecretList, stage=asked, members=tuple(sorted(own)))
        if self._board.own != self._convener:
            self._tell(self._convener, mine)
            await self._stage(lambda: self._said(told, self._convener), stages=3, since=began)
        else:
            self._board.take_secret(self._board.own, self._message(mine))
            # Whose shares, or part, are not here has dropped out. Who lacks what we have waits for it a stage
            # long before it says so.
            everybody = lambda: all(self._said(asked, self._members[index]) for index in own)  # noqa: E731
            await self._stage(everybody, stages=2, since=began)
            found = tuple(sorted(self._in_all(asked)))
            for _, peer in self._others():
                self._tell(peer, partial(SecretList, stage=told, members=found))
            self._board.take_secret(
                self._board.own, self._message(partial(SecretList, stage=told, members=found))
            )
        said = self._board.secret(told).get(self._convener)
        if not isinstance(said, SecretList) or not set(said.members) < {*range(len(self._members)), -1}:
            raise RemoteProtocolError("who convened it has not said in time who takes part")
        settled = frozenset(said.members)
        if len(settled) < threshold_of(len(self._members)):
            raise RemoteProtocolError(f"{len(settled)} of {len(self._members)} members are left")
        return settled

    def _in_all(self, asked: str) -> set[int]:
        """Who has sent a list, and is in that of everybody who has."""
        lists = {
            self._members.index(peer): set(said.members)
            for peer, said in self._board.secret(asked).items()
            if isinstance(said, SecretList) and peer in self._members and peer not in self._board.gone
        }
        return {index for index in lists if all(index in members for members in lists.values())}

    async def _send_masked(self, among: frozenset[int]) -> None:
        for index, peer in enumerate(self._members):
            masked = await trio.to_thread.run_sync(self._masked, index, among)
            payload = masked.astype("<u8").tobytes()
            message = self._part(index, "update", payload)
            if index == self._own:
                self._board.take_part(peer, message, payload)
            else:
                self._peers.post(peer, message, payload, self._means_until)

    def _masked(self, index: int, among: frozenset[int]) -> FixedPoint:
        bound = self._bounds[index]
        radius = self._radius(bound)
        fixed = encode_fixed(clip_norm(self._update[bound], radius), self._weights[self._own], radius)
        return self._member.masked(fixed, index, among)

    async def _wait_parts(self, among: frozenset[int]) -> None:
        wanted = [self._members[index] for index in among]
        await self._stage(
            lambda: all(peer in self._board.parts("update") or peer in self._board.gone for peer in wanted)
        )

    def _masked_parts(self, among: frozenset[int]) -> dict[int, FixedPoint]:
        """What has come of our part, by members, where it is as long as it must be."""
        bound = self._bounds[self._own]
        found: dict[int, FixedPoint] = {}
        for peer, part in self._board.parts("update").items():
            index = self._members.index(peer) if peer in self._members else -1
            fits = part.message.index == self._own and len(part.payload) == 8 * (bound.stop - bound.start)
            if index in among and fits:
                found[index] = np.frombuffer(part.payload, "<u8").astype(np.uint64)
        return found

    def _show(self, among: frozenset[int], counted: frozenset[int]) -> None:
        """Give each owner what it needs to take the masks off. Raises RemoteProtocolError: it may not."""
        shares = tuple(sorted(self._member.show(among, counted).items()))
        for _, peer in self._others():
            self._tell(peer, partial(SecretShown, shares=shares))
        self._board.take_secret(self._board.own, self._message(partial(SecretShown, shares=shares)))

    async def _reduce_secret(self, masked: dict[int, FixedPoint], among: frozenset[int]) -> None:
        await self._stage(
            lambda: all(
                self._said("SecretShown", self._members[index]) or self._members[index] in self._board.gone
                for index in masked
            )
        )
        shown = {
            self._members.index(peer): dict(said.shares)
            for peer, said in self._board.secret("SecretShown").items()
            if isinstance(said, SecretShown) and peer in self._members
        }
        unmask = partial(unmasked_sum, self._context, self._own, masked, among, shown, self._keys)
        total = await trio.to_thread.run_sync(unmask)
        bound = self._bounds[self._own]
        radius = self._radius(bound)
        mean = decode_fixed(total, sum(self._weights[index] for index in masked), radius)
        if fault := mean_fault(mean, bound.stop - bound.start, radius):
            raise RemoteProtocolError(f"the sum cannot be: {fault}")
        for index, peer in enumerate(self._members):
            if index not in masked:
                self._reduced.left_out[peer] = "it dropped out before the sum"
        self._give_mean(mean)

    def _radius(self, bound: slice) -> float:
        return part_radius(self._terms.allowed, bound.stop - bound.start, self._terms.size)

    def _key_of(self, peer: PeerId) -> bytes:
        """The key of a member's standing in this round; empty where it has told none."""
        said = self._board.standings.get(peer)
        fits = said is not None and said.ready and said.round == self._accepted.plan.round
        return said.mask_key if said is not None and fits and len(said.mask_key) == 32 else b""

    def _message(self, make: Callable[..., SecretMessage]) -> SecretMessage:
        plan = self._accepted
        return make(run=self._board.run, round=plan.plan.round, plan=plan.hash)

    def _tell(self, peer: PeerId, make: Callable[..., SecretMessage]) -> None:
        self._peers.post(peer, self._message(make), b"", self._means_until)

    async def _stage(
        self, condition: Callable[[], bool], stages: int = 1, since: float | None = None
    ) -> None:
        """Wait for what some stages need, or until their time is over: from ``since`` on, or from now."""
        began = trio.current_time() if since is None else since
        until = began + stages * self._terms.part_s
        await self._peers.wait(min(self._means_until, until), condition)

    def _end_in(self, stages: int) -> None:
        """Wait for means no longer than so many stages take from now on."""
        self._means_until = min(self._means_until, trio.current_time() + stages * self._terms.part_s)

    def _said(self, stage: str, peer: PeerId) -> bool:
        return peer in self._board.secret(stage) or peer in self._board.gone

    def _all_said(self, stage: str) -> bool:
        return all(self._said(stage, peer) for _, peer in self._others())
