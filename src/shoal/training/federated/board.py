"""What a member has heard of its run, within bounds: cards, standings, plans, parts. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from shoal.training.federated.compress import UpdateForm
from shoal.training.federated.decide import RunSnapshot, has_enough, most_of, plan_fault, ready_members
from shoal.training.federated.received import AcceptedPlan, ReceivedMessages, ReceivedPart
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    RoundPlan,
    Said,
    TermsStatement,
    statement_hash,
)
from shoal.types import PeerId
from shoal.wire.federating import MAX_MEMBERS, SecretMessage, UpdatePart


@dataclass(frozen=True, slots=True)
class HeardPlan:
    """A plan, whether it holds or not, and when it was heard."""

    made: AcceptedPlan
    at: float


@dataclass
class RunBoard:
    """One member's knowledge of one run.

    Args:
        own: itself.
        form: what parts of updates look like.
        least: members without whom there is no round.
    """

    run: bytes
    own: PeerId
    form: UpdateForm
    least: int
    round: int = 0
    state: bytes = b""
    cards: dict[PeerId, MemberCard] = field(default_factory=dict[PeerId, MemberCard])
    standings: dict[PeerId, MemberStanding] = field(default_factory=dict[PeerId, MemberStanding])
    raw: dict[tuple[PeerId, str], bytes] = field(default_factory=dict[tuple[PeerId, str], bytes])
    """The last card and standing of each member, as they are passed on."""
    gone: set[PeerId] = field(default_factory=set[PeerId])
    first_ready: float | None = None
    last_ready: float | None = None
    _were_ready: set[PeerId] = field(default_factory=set[PeerId])
    """In this round so far: who says it once more holds up nobody."""
    _plans: dict[tuple[int, PeerId], HeardPlan] = field(default_factory=dict[tuple[int, PeerId], HeardPlan])
    """Of this round and the next, one of each member."""
    _received: ReceivedMessages = field(init=False)

    def __post_init__(self) -> None:
        self._received = self._nothing_received()

    def take(self, statement: Said, raw: bytes, now: float) -> bool:
        """Take a statement in that its signer has signed. Returns whether it says something new."""
        peer = PeerId(statement.peer)
        match statement:
            case TermsStatement():
                return False  # known before there is a board
            case MemberCard():
                news = self._take_card(peer, statement, raw)
            case MemberStanding():
                news = self._take_standing(peer, statement, raw)
            case RoundPlan():
                news = self._take_plan(peer, statement, raw, now)
        self._look(now)
        return news

    def take_part(self, sender: PeerId, message: UpdatePart, payload: bytes) -> bool:
        """Keep a part of this round until it is over. Returns whether it is kept.

        Before its plan is known, of those alone who are ready, and no longer than a part can be of a plan
        that has enough of them. So all of these together are at most four vectors, six where sums are secret.
        """
        ready = ready_members(self.snapshot())
        if message.round != self.round or (self.accepted is None and sender not in ready):
            return False
        return self._received.take_part(sender, message, payload, max(self.least, most_of(len(ready))))

    def take_secret(self, sender: PeerId, message: SecretMessage) -> bool:
        """Keep what a secret sum needs until the round is over. Returns whether it is kept."""
        if sender not in self.cards or message.round != self.round:
            return False
        return self._received.take_secret(sender, message)

    def secret(self, stage: str) -> Mapping[PeerId, SecretMessage]:
        """What has come of a stage, a list's name or the name of a message's type, by sender."""
        return self._received.secret_messages(stage)

    def parts(self, kind: str) -> Mapping[PeerId, ReceivedPart]:
        """What has come by the accepted plan, by sender."""
        return self._received.parts(kind)

    @property
    def accepted(self) -> AcceptedPlan | None:
        """The plan of this round; ``None`` before one holds."""
        return self._received.accepted

    def begin(self, round: int, state: bytes, now: float) -> None:
        """This member is in a round now, with the state of this digest. What was of others is forgotten."""
        if (round, state) != (self.round, self.state):
            self.round, self.state = round, state
            self.first_ready = self.last_ready = None
            self._were_ready.clear()
            self._received = self._nothing_received()
            # A plan of the next round may have come from who was sooner.
            self._plans = {key: heard for key, heard in self._plans.items() if key[0] >= round}
        self._look(now)

    def snapshot(self) -> RunSnapshot:
        """As the decisions want it."""
        return RunSnapshot(
            own=self.own,
            run=self.run,
            round=self.round,
            state=self.state,
            standings=self.standings,
            members=self.cards.keys(),
            gone=self.gone,
            first_ready=self.first_ready,
            last_ready=self.last_ready,
        )

    def unknown(self, plan: RoundPlan) -> list[PeerId]:
        """Who is in a plan without this member knowing where it is, or that it is ready.

        Who cannot be reached from here alone may be in it, but it must have said that it is ready.
        """
        ready = set(ready_members(replace(self.snapshot(), gone=frozenset())))
        return [peer for peer in plan.peers if peer not in self.cards or peer not in ready]

    def passed_over(self, now: float, lapse_s: float) -> bool:
        """Whether a round goes on without this member: most of those who are ready are in it.

        A plan tells that for ``lapse_s``: a round that is over by then has taken its members along, or was
        none. Only who has said that it is ready counts, whatever names are in it.
        """
        known = self.snapshot()
        ready = ready_members(known)
        return any(
            now < heard.at + lapse_s
            and (plan.round, plan.state) == (self.round, self.state)
            and self.own not in plan.peers
            and PeerId(plan.peer) in ready
            and PeerId(plan.peer) in plan.peers
            and len(set(plan.peers) & set(ready)) >= self.least
            and has_enough(plan, known)
            for heard in self._plans.values()
            for plan in (heard.made.plan,)
        )

    def statements(self) -> list[bytes]:
        """Every card and standing, as they are passed on, and the plans of this round."""
        return [*self.raw.values()]

    def _take_card(self, peer: PeerId, card: MemberCard, raw: bytes) -> bool:
        known = self.cards.get(peer)
        if known is not None and known.number >= card.number:
            return False
        if known is None and len(self.cards) >= MAX_MEMBERS and not self._make_room():
            return False
        self.cards[peer], self.raw[peer, "card"] = card, raw
        return True

    def _make_room(self) -> bool:
        """Whether one who is gone has made place for a newcomer."""
        for peer in self.gone:
            if peer in self.cards:
                del self.cards[peer]
                self.standings.pop(peer, None)
                self.raw = {key: raw for key, raw in self.raw.items() if key[0] != peer}
                self._plans = {key: heard for key, heard in self._plans.items() if key[1] != peer}
                self._received.forget_early(peer)
                self.gone.discard(peer)
                return True
        return False

    def _take_standing(self, peer: PeerId, standing: MemberStanding, raw: bytes) -> bool:
        known = self.standings.get(peer)
        if peer not in self.cards or (known is not None and known.number >= standing.number):
            return False
        self.standings[peer], self.raw[peer, "standing"] = standing, raw
        if not standing.ready:
            self._received.forget_early(peer)
        return True

    def _take_plan(self, peer: PeerId, plan: RoundPlan, raw: bytes, now: float) -> bool:
        """One plan of a member in a round: nobody's takes the place of another's. The own one always holds,
        and so does a later one of a member that has begun the round anew, with another adapter than ours.
        """
        if peer not in self.cards or not self.round <= plan.round <= self.round + 1:
            return False
        known = self._plans.get((plan.round, peer))
        beside = known is not None and plan.round == self.round and known.made.plan.state != self.state
        if known is not None and peer != self.own and not beside:
            return False
        self._plans[plan.round, peer] = HeardPlan(AcceptedPlan(plan, statement_hash(raw)), now)
        return True

    def _look(self, now: float) -> None:
        """What follows from what is known now: who was ready first, and the plan that holds."""
        known = self.snapshot()
        ready = ready_members(known)
        if self.first_ready is None and ready:
            self.first_ready = now
        if not self._were_ready.issuperset(ready):
            self._were_ready.update(ready)
            self.last_ready = now
        if self.accepted is None and self.own in ready:
            heard = (heard.made for heard in self._plans.values())
            valid = (made for made in heard if not plan_fault(made.plan, known, self.least))
            accepted = next((made for made in valid if not self.unknown(made.plan)), None)
            if accepted is not None:
                self._received.accept(accepted)

    def _nothing_received(self) -> ReceivedMessages:
        return ReceivedMessages(self.own, self.form)
