"""A member of a federated run: it learns, agrees on a round with the others, and goes on from the mean."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shoal.client.federated.gather import CoefficientGathering, computed
from shoal.client.federated.learner import Learner
from shoal.client.federated.reduce import ReducedRound, RoundReduction
from shoal.client.federated.reduce_secret import STAGES, SecretReduction
from shoal.client.federated.run_peers import RunPeers
from shoal.errors import DeadlineExceeded, NotRunning, StepFailed
from shoal.net.network import Network
from shoal.swarm.clock import Clock
from shoal.tasks import one_error
from shoal.training.federated.board import RunBoard
from shoal.training.federated.decide import ahead, convenes_at, ready_members
from shoal.training.federated.demo.coefficients import Coefficients
from shoal.training.federated.demo.momentum import DecoupledMomentum
from shoal.training.federated.means import UpdateVector, clip_norm
from shoal.training.federated.outer import SharedState
from shoal.training.federated.private import noisy_update, spent_epsilon
from shoal.training.federated.received import AcceptedPlan
from shoal.training.federated.statements import MemberStanding, PlannedMember, RoundPlan
from shoal.training.federated.terms import FederatedTerms, run_of
from shoal.types import PeerId

PATIENCE_S = 600.0
"""How long a round waits for as many members as the terms ask for, and a newcomer for any."""
SETTLE_S = 10.0
"""How long those of a round are waited for, after it, to say what they have come to."""
LINGER_S = 30.0
"""The same after the last one, so that whoever has missed it can have the adapter from us."""
CATCH_UP_ATTEMPTS = 4
STATES_KEPT = 2
DEMO_SAVED = 20
"""Steps by DeMo between two that are kept; what a member has missed it has from the others."""
LOOK_S = 1.0
"""How often it is looked whether something is due, whatever is heard."""

Save = Callable[[int, SharedState], Awaitable[None]]
"""Keeps the round that is to come, and the state that it begins with."""
KeepSpent = Callable[[int], Awaitable[None]]
"""Keeps how many updates with noise were sent, before the last of them is."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one round came to at this member."""

    round: int
    """From 1."""
    rounds: int
    members: tuple[PeerId, ...]
    """Who was in it; empty where it was missed, and the adapter came from others."""
    left_out: dict[PeerId, str] = field(default_factory=dict[PeerId, str])
    """Whose update does not count, or a part of it, and why."""
    missing: dict[PeerId, str] = field(default_factory=dict[PeerId, str])
    """Owners whose part of the adapter stayed as it was, and why."""
    digest: str = ""
    """Of the adapter and its momentum after it: the same at all members."""
    agreed: int = 0
    """Members, this one included, that said to have the same."""
    loss: float = float("nan")
    """Of this member's last local step."""
    sent: int = 0
    """Bytes to other members so far."""
    sent_in_round: int = 0
    """The same since the round before."""
    epsilon: float | None = None
    """What all its updates so far have shown of this member's data, with a delta of ``DELTA``; ``None``
    without noise."""


@dataclass(frozen=True, slots=True)
class LocalRound:
    """What a member has to send in a round, and what that was learnt from."""

    update: UpdateVector | Coefficients
    examples: int
    loss: float


class Participant:
    """One member of one run. :func:`taking_part` opens it.

    Args:
        terms, raw: the terms, and as they are signed.
        state: what the round ``round`` begins with, of a member that goes on after it was ended.
        momentum: what it had then of its own, of a run by DeMo.
        spent: updates with noise that it has sent before.
    """

    def __init__(
        self,
        network: Network,
        clock: Clock,
        terms: FederatedTerms,
        raw: bytes,
        learner: Learner,
        *,
        round: int = 0,
        state: SharedState | None = None,
        momentum: UpdateVector | None = None,
        save: Save | None = None,
        spent: int = 0,
        keep_spent: KeepSpent | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.terms, self.learner = terms, learner
        self.board = RunBoard(run_of(raw), network.peer, terms.form, terms.least)
        self.peers = RunPeers(network, clock, self.board, raw, self._state_of)
        self._save, self._patience_s = save, patience_s
        self._spent, self._keep_spent = spent, keep_spent
        self._sent_before = 0
        self._mask_key = X25519PrivateKey.generate()
        self._demo: DecoupledMomentum | None = None
        if terms.demo is not None:
            self._demo = DecoupledMomentum(terms.size, terms.demo.decay, terms.demo.kept, momentum)
        self._states: dict[bytes, SharedState] = {}
        self.round = round
        self.state = state or SharedState.fresh(learner.weights())
        if self.state.weights.size != terms.size:
            raise StepFailed(
                f"an adapter of {self.state.weights.size} numbers, and the run's has {terms.size}"
            )

    @property
    def momentum(self) -> UpdateVector | None:
        """What this member keeps to itself in a run by DeMo; ``None`` in any other."""
        return None if self._demo is None else self._demo.held

    async def run(self) -> AsyncGenerator[RoundReport]:
        """Take part until the last round is over; tells of each.

        Raises:
            NotRunning: too few members are there, for long.
            DeadlineExceeded: the others have an adapter that nobody gives us.
            ShoalError: the local steps cannot be done.
            OSError: the state cannot be kept.
        """
        self._adopt(self.round, self.state)
        await self._await_members()
        while self.round < self.terms.rounds:
            if (report := await self._catch_up()) is not None:
                yield report
                continue
            self.learner.put(self.state.weights)
            local = await self._learn()
            reduced = await self._average(local)
            if reduced is None:
                self._take_back(local)
                continue  # the others have gone on without us
            if not reduced.mean.any():
                self._take_back(local)  # before what is left of the momentum is kept
            await self._finish(reduced)
            yield self._report(reduced, local.loss)
        await self.peers.wait(trio.current_time() + LINGER_S, self._all_done)
        if (report := await self._catch_up()) is not None:
            yield report
        self.learner.put(self.state.weights)

    async def _learn(self) -> LocalRound:
        """The local steps of a round; by DeMo one gradient, and what of the momentum is sent."""
        demo = self._demo
        if demo is None:
            examples, loss = await self.learner.learn(self.round, self.terms.steps, self.terms.proximal)
            return LocalRound(
                await self._private(self.learner.weights() - self.state.weights), examples, loss
            )
        gradient, examples, loss = await self.learner.gradient(self.round)
        taken = await computed(self.terms.size, lambda: demo.extract(gradient))
        return LocalRound(taken, examples, loss)

    def _take_back(self, local: LocalRound) -> None:
        """Of a step that was made without us, or not at all, keep what we would have sent."""
        if self._demo is not None and isinstance(local.update, Coefficients):
            self._demo.put_back(local.update)

    async def _private(self, update: UpdateVector) -> UpdateVector:
        """The update as others may see it: clipped, and with noise, where the terms want that."""
        if not self.terms.noise:
            # Here, since one far beyond the norm that is allowed is left out by the others.
            return clip_norm(update, self.terms.radius)
        self._spent += 1
        if self._keep_spent is not None:
            await self._keep_spent(self._spent)
        return noisy_update(update, self.terms.radius, self.terms.noise)

    async def _await_members(self) -> None:
        """Wait for as many as the terms ask for."""
        until = trio.current_time() + self._patience_s

        def enough() -> bool:
            return len(self.board.standings.keys() - self.board.gone) >= self.terms.least

        if not await self.peers.wait(until, enough):
            raise self._too_few()

    async def _catch_up(self) -> RoundReport | None:
        """Take the adapter that most have, where this member has another one."""
        for _ in range(CATCH_UP_ATTEMPTS):
            where = ahead(self.board.snapshot())
            if where is None:
                return None
            round, digest = where
            state = await self.peers.fetch_state(digest, self.terms.size, self.terms.part_s)
            if state is not None:
                return await self._take_over(round, state)
            await self.peers.wait_news(trio.current_time() + SETTLE_S)  # they may have gone on meanwhile
        raise DeadlineExceeded(
            "most members have an adapter that none of them gives",
            check="look at the link to the others; the same command goes on from where this member is",
        )

    async def _take_over(self, round: int, state: SharedState) -> RoundReport:
        """Go on from the adapter of others."""
        log.info("round %d: the adapter came from others", round)
        await self._reach(round, state)
        return self._report(None)

    async def _average(self, local: LocalRound) -> ReducedRound | None:
        """The round's mean; ``None`` where most others are in a later one."""
        self._mask_key = X25519PrivateKey.generate()  # of this round alone
        self._say(ready=True, examples=local.examples)
        accepted = await self._await_plan()
        if accepted is None:
            return None
        until, common = trio.current_time() + self.terms.part_s, (self.peers, accepted, self.terms)
        if isinstance(local.update, Coefficients):
            return await CoefficientGathering(*common, local.update, until).run()
        if self.terms.secret:
            return await SecretReduction(*common, local.update, until, self._mask_key).run()
        return await RoundReduction(*common, local.update, until).run()

    async def _await_plan(self) -> AcceptedPlan | None:
        """Wait for a plan, or make one when it is our turn; ``None`` where the others have gone on."""
        until = trio.current_time() + self._patience_s + self.terms.gather_s
        lapse_s = (2 + STAGES * self.terms.secret) * self.terms.part_s  # what a round of others may take
        while (accepted := self.board.accepted) is None:
            known = self.board.snapshot()
            if ahead(known) is not None:
                return None
            now = trio.current_time()
            passed = self.board.passed_over(now, lapse_s)
            at = None if passed else convenes_at(known, self.terms.least, self.terms.gather_s)
            if at is not None and now >= at and self._convene():
                continue
            if now >= until:
                raise self._too_few()
            look = min(at, now + LOOK_S) if at is not None and at > now else now + LOOK_S
            await self.peers.wait_news(min(until, look))
        return accepted

    def _convene(self) -> bool:
        """Publish a plan with everybody who is ready. Returns whether this member keeps to it."""
        known = self.board.snapshot()
        ready = sorted(ready_members(known))
        members = tuple(PlannedMember(peer, known.standings[peer].examples) for peer in ready)
        plan = RoundPlan(self.board.run, self.board.own, self.round, self.state.digest, members)
        self.peers.say(plan)
        return self.board.accepted is not None

    async def _finish(self, reduced: ReducedRound) -> None:
        """Go on to the next round, and hear what the others have come to."""
        state = self.state.step(reduced.mean, self.terms.outer_rate, self.terms.outer_momentum)
        self.board.gone |= (reduced.missing.keys() & self.board.cards.keys()) - {self.board.own}
        await self._reach(self.round + 1, state)
        those = [peer for peer in reduced.members if peer not in reduced.missing]
        await self.peers.wait(trio.current_time() + SETTLE_S, lambda: self._settled(those))

    def _settled(self, those: list[PeerId]) -> bool:
        standings, gone = self.board.standings, self.board.gone
        return all(peer in gone or standings[peer].round >= self.round for peer in those if peer in standings)

    async def _reach(self, round: int, state: SharedState) -> None:
        self._adopt(round, state)
        due = self._demo is None or round % DEMO_SAVED == 0 or round >= self.terms.rounds
        if self._save is not None and due:
            await self._save(round, state)

    def _adopt(self, round: int, state: SharedState) -> None:
        self.round, self.state = round, state
        self._states[state.digest] = state
        while len(self._states) > STATES_KEPT:
            del self._states[next(iter(self._states))]
        self.board.begin(round, state.digest, trio.current_time())
        self._say(ready=False)

    def _say(self, *, ready: bool, examples: int = 0) -> None:
        key = self._mask_key.public_key().public_bytes_raw() if self.terms.secret and ready else b""
        digest, run, own = self.state.digest, self.board.run, self.board.own
        number = self.peers.next_number()
        self.peers.say(MemberStanding(run, own, self.round, digest, ready, examples, number, key))

    def _state_of(self, digest: bytes) -> SharedState | None:
        return self._states.get(digest)

    def _agreeing(self) -> int:
        digest = self.state.digest
        return sum(said.state == digest for said in self.board.standings.values())

    def _all_done(self) -> bool:
        return all(
            peer in self.board.gone or (said.round, said.state) == (self.round, self.state.digest)
            for peer, said in self.board.standings.items()
        )

    def _report(self, reduced: ReducedRound | None, loss: float = float("nan")) -> RoundReport:
        """What the last round came to; with ``None`` it was missed."""
        before, self._sent_before = self._sent_before, self.peers.sent
        return RoundReport(
            self.round,
            self.terms.rounds,
            () if reduced is None else tuple(reduced.members),
            {} if reduced is None else reduced.left_out,
            {} if reduced is None else reduced.missing,
            self.state.digest.hex(),
            self._agreeing(),
            loss,
            self._sent_before,
            self._sent_before - before,
            spent_epsilon(self.terms.noise, self._spent) if self.terms.noise else None,
        )

    def _too_few(self) -> NotRunning:
        there = len(self.board.standings.keys() - self.board.gone)
        return NotRunning(
            f"{there} of at least {self.terms.least} members are there after {self._patience_s:.0f} s",
            check="let others join with the run's code; the same command goes on from here",
            next_command="shoal federate status",
        )


@asynccontextmanager
async def taking_part(participant: Participant) -> AsyncGenerator[Participant]:
    """Let a member be heard and hear the others until the block ends."""
    with one_error():
        async with trio.open_nursery() as nursery:
            await nursery.start(participant.peers.run)
            try:
                yield participant
            finally:
                nursery.cancel_scope.cancel()
