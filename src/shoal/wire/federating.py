"""Messages of federated rounds, between the members of a run (:mod:`shoal.training.federated`)::

    member → RunWanted           what are the terms, and who takes part?
    member ← FederatedStatement  … each of them signed by whom it is of
    member → UpdatePart          my part of the update, to whom the plan gives that part
    member ← UpdatePart          what all members' parts come to
    member → SecretShare, SecretList, SecretShown    where sums are secret
    member → StateWanted         the adapter as most have it
    member ← StateGiven | StateNotGiven

Statements may be passed on; all else holds between the two ends of the channel.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from shoal.wire.fields import MAX_PAYLOAD, Number, PeerText, TaggedMessage, Text

MAX_MEMBERS = 64
"""Of one run."""
MAX_ROUNDS = 100_000
MAX_SIZE = MAX_PAYLOAD // 8
"""Elements of an adapter that is tuned together: its weights and momentum fit a message."""
MAX_STATEMENT = 24 << 10
"""Bytes of a signed statement."""
RunHash = Annotated[bytes, Meta(min_length=32, max_length=32)]
MemberPlace = Annotated[int, Meta(ge=0, lt=MAX_MEMBERS)]
"""Of a member in a plan."""
Round = Annotated[int, Meta(ge=0, le=MAX_ROUNDS)]


class RunWanted(TaggedMessage, frozen=True, tag="run_wanted"):
    """Ask for the terms of a run, and the members that the peer knows."""

    run: RunHash


class FederatedStatement(TaggedMessage, frozen=True, tag="federated_statement"):
    """What a member has said and signed, passed on by anybody."""

    run: RunHash
    body: Annotated[bytes, Meta(min_length=1, max_length=MAX_STATEMENT)]


class UpdatePart(TaggedMessage, frozen=True, tag="update_part"):
    """A part of an update for its owner, or its mean from there. Its payload: float32 of each element; where
    sums are secret, integers of 8 bytes."""

    run: RunHash
    round: Round
    plan: RunHash
    """The hash of the plan that this is by."""
    index: MemberPlace
    """The part's owner, by its place in the plan."""
    kind: Literal["update", "mean"]
    size: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]
    """Bytes of the payload."""
    left_out: Annotated[tuple[tuple[PeerText, Text], ...], Meta(max_length=MAX_MEMBERS)] = ()
    """Whose parts a mean is without, and why."""


class StateWanted(TaggedMessage, frozen=True, tag="state_wanted"):
    """Ask for weights and momentum."""

    run: RunHash
    number: Number
    """The answer has it too."""
    state: RunHash
    """The digest that they must have."""


class StateGiven(TaggedMessage, frozen=True, tag="state_given"):
    """The payload: weights, then momentum, float32."""

    run: RunHash
    number: Number
    size: Annotated[int, Meta(ge=0, le=MAX_PAYLOAD)]


class StateNotGiven(TaggedMessage, frozen=True, tag="state_not_given"):
    """The peer has none with that digest any more."""

    run: RunHash
    number: Number


class SecretShare(TaggedMessage, frozen=True, tag="secret_share"):
    """A share of the secrets by which the sender hides its update in this round."""

    run: RunHash
    round: Round
    plan: RunHash
    share: Annotated[bytes, Meta(min_length=64, max_length=64)]


class SecretList(TaggedMessage, frozen=True, tag="secret_list"):
    """Members by their places in the plan: to the convener ``held``, whose shares the sender has, and
    ``came``, whose parts; from there ``among``, who have masks in common, and ``counted``, who count."""

    run: RunHash
    round: Round
    plan: RunHash
    stage: Literal["held", "among", "came", "counted"]
    members: Annotated[tuple[MemberPlace, ...], Meta(max_length=MAX_MEMBERS)]


class SecretShown(TaggedMessage, frozen=True, tag="secret_shown"):
    """For a part's owner: of each member a share of one of its secrets, by the list of who counts."""

    run: RunHash
    round: Round
    plan: RunHash
    shares: Annotated[
        tuple[tuple[MemberPlace, Annotated[bytes, Meta(min_length=32, max_length=32)]], ...],
        Meta(max_length=MAX_MEMBERS),
    ]


SecretMessage = SecretShare | SecretList | SecretShown
FederatingMessage = (
    SecretMessage | RunWanted | FederatedStatement | UpdatePart | StateWanted | StateGiven | StateNotGiven
)
