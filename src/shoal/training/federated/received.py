"""Parts and messages of secret sums that have come in one round, within bounds. No I/O.

Before the plan is known, one of each sender and kind is kept, no longer than a part of a plan can be. From
then on, what members of the plan send by it, once each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from shoal.training.federated.compress import UpdateForm
from shoal.training.federated.layout import part_bounds
from shoal.training.federated.statements import RoundPlan
from shoal.types import PeerId
from shoal.wire.federating import SecretList, SecretMessage, UpdatePart


@dataclass(frozen=True, slots=True)
class AcceptedPlan:
    """The plan that a member keeps to in a round."""

    plan: RoundPlan
    hash: bytes


@dataclass(frozen=True, slots=True)
class ReceivedPart:
    """What came of a part, from whom."""

    message: UpdatePart
    payload: bytes


@dataclass
class ReceivedMessages:
    """Of one round, at one member.

    Args:
        own: the member.
        form: what parts look like.
    """

    own: PeerId
    form: UpdateForm
    accepted: AcceptedPlan | None = None
    _parts: dict[tuple[str, PeerId], ReceivedPart] = field(
        default_factory=dict[tuple[str, PeerId], ReceivedPart]
    )
    _secrets: dict[tuple[str, PeerId], SecretMessage] = field(
        default_factory=dict[tuple[str, PeerId], SecretMessage]
    )

    def accept(self, accepted: AcceptedPlan) -> None:
        """Keep to this plan: all that is not by it is forgotten."""
        self.accepted = accepted
        self._parts = {
            (kind, sender): part
            for (kind, sender), part in self._parts.items()
            if self._is_planned(sender, part.message, part.payload)
        }
        self._secrets = {
            (stage, sender): said
            for (stage, sender), said in self._secrets.items()
            if said.plan == accepted.hash and sender in accepted.plan.peers
        }

    def take_part(self, sender: PeerId, message: UpdatePart, payload: bytes, fewest: int) -> bool:
        """Keep a part. Returns whether it is kept.

        Args:
            fewest: members that a plan must have, as far as is known.
        """
        key, known = (message.kind, sender), self._parts.get((message.kind, sender))
        if (known is not None and known.message.plan == message.plan) or (
            message.kind == "update" and message.left_out
        ):
            return False
        if self.accepted is not None:
            if not self._is_planned(sender, message, payload):
                return False
        else:
            most = -(-self.form.size // fewest)
            if len(payload) > self.form.part_bytes(message.kind, most):
                return False
            # As more are known to be ready, what was kept before may be longer than any part can be now.
            self._parts = {
                of: part
                for of, part in self._parts.items()
                if len(part.payload) <= self.form.part_bytes(part.message.kind, most)
            }
        self._parts[key] = ReceivedPart(message, payload)
        return True

    def take_secret(self, sender: PeerId, message: SecretMessage) -> bool:
        """Keep a message of a secret sum. Returns whether it is kept."""
        stage = message.stage if isinstance(message, SecretList) else type(message).__name__
        known = self._secrets.get((stage, sender))
        if known is not None and known.plan == message.plan:
            return False
        plan = self.accepted
        if plan is not None and (message.plan != plan.hash or sender not in plan.plan.peers):
            return False
        self._secrets[stage, sender] = message
        return True

    def parts(self, kind: str) -> Mapping[PeerId, ReceivedPart]:
        """What has come by the accepted plan, by sender."""
        if self.accepted is None:
            return {}
        return {sender: part for (what, sender), part in self._parts.items() if what == kind}

    def secret_messages(self, stage: str) -> Mapping[PeerId, SecretMessage]:
        """What has come of a stage, a list's name or the name of a message's type, by sender."""
        if self.accepted is None:
            return {}
        return {sender: said for (what, sender), said in self._secrets.items() if what == stage}

    def forget_early(self, sender: PeerId) -> None:
        """Forget what came of a sender before its plan."""
        if self.accepted is None:
            self._parts = {key: part for key, part in self._parts.items() if key[1] != sender}
            self._secrets = {key: said for key, said in self._secrets.items() if key[1] != sender}

    def _is_planned(self, sender: PeerId, message: UpdatePart, payload: bytes) -> bool:
        """Whether a part is by the accepted plan: of a member, of whom it must be, and no longer than that. A
        shorter one is kept, so that its owner can say what is wrong with it."""
        if self.accepted is None or message.plan != self.accepted.hash:
            return False
        peers = self.accepted.plan.peers
        owner = self.own if message.kind == "update" else sender
        if sender not in peers or owner not in peers or peers.index(owner) != message.index:
            return False
        bound = part_bounds(self.form.size, len(peers))[message.index]
        return len(payload) <= self.form.part_bytes(message.kind, bound.stop - bound.start)
