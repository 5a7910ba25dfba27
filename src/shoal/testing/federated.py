"""Members of a federated run in one process, with a small model of numpy's and a pretended network."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import trio

from shoal.client.federated.participant import Participant, RoundReport, taking_part
from shoal.swarm.clock import Clock
from shoal.testing.memory import MemoryNetwork, World
from shoal.training.federated.means import UpdateVector
from shoal.training.federated.statements import TermsStatement, sign_statement
from shoal.training.federated.terms import FederatedTerms
from shoal.types import PeerId
from shoal.wire.federating import UpdatePart
from shoal.wire.framing import Payload
from shoal.wire.messages import Message


@dataclass
class SoftmaxLearner:
    """Softmax regression: ``features × classes`` weights, by full-batch gradient descent.

    Args:
        inputs: float32 ``[examples, features]``.
        labels: of each example, its class.
        step_s: what a local step takes, on trio's clock.
    """

    inputs: UpdateVector
    labels: np.ndarray[Any, np.dtype[np.int64]]
    classes: int
    rate: float = 0.5
    step_s: float = 0.01
    flat: UpdateVector = field(init=False)

    def __post_init__(self) -> None:
        self.flat = np.zeros(self.inputs.shape[1] * self.classes, np.float32)

    def weights(self) -> UpdateVector:
        return self.flat.copy()

    def put(self, weights: UpdateVector) -> None:
        self.flat = weights.copy()

    async def learn(self, round: int, steps: int, proximal: float) -> tuple[int, float]:
        begun = self.flat.copy()
        for _ in range(steps):
            gradient = self.gradients() + np.float32(proximal) * (self.flat - begun)
            self.flat = (self.flat - np.float32(self.rate) * gradient).astype(np.float32)
            await trio.sleep(self.step_s)
        return len(self.labels), self.loss(self.inputs, self.labels)

    async def gradient(self, round: int) -> tuple[UpdateVector, int, float]:
        await trio.sleep(self.step_s)
        return self.gradients(), len(self.labels), self.loss(self.inputs, self.labels)

    def loss(self, inputs: UpdateVector, labels: np.ndarray[Any, np.dtype[np.int64]]) -> float:
        """The mean cross entropy."""
        chances = self._chances(inputs)
        return float(-np.log(chances[np.arange(len(labels)), labels] + 1e-12).mean())

    def gradients(self) -> UpdateVector:
        """Of the loss over its own examples, by the flat weights."""
        chances = self._chances(self.inputs)
        chances[np.arange(len(self.labels)), self.labels] -= 1
        return (self.inputs.T @ chances / len(self.labels)).astype(np.float32).ravel()

    def _chances(self, inputs: UpdateVector) -> UpdateVector:
        logits = inputs @ self.flat.reshape(inputs.shape[1], self.classes)
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)


def unlike_data(
    members: int, *, classes: int = 4, features: int = 12, examples: int = 60, seed: int = 0
) -> list[tuple[UpdateVector, np.ndarray[Any, np.dtype[np.int64]]]]:
    """For each member examples of its own, in which one class is the most frequent by far."""
    chance = np.random.default_rng(seed)
    middles = chance.normal(0, 1, (classes, features))
    found: list[tuple[UpdateVector, np.ndarray[Any, np.dtype[np.int64]]]] = []
    for member in range(members):
        shares = np.full(classes, 0.4 / (classes - 1))
        shares[member % classes] = 0.6
        labels = chance.choice(classes, examples, p=shares).astype(np.int64)
        inputs = (middles[labels] + chance.normal(0, 1.2, (examples, features))).astype(np.float32)
        found.append((inputs, labels))
    return found


@dataclass
class MemoryRun:
    """A run whose members are all here. Each lives in a task of its own, with what it has told."""

    world: World
    nursery: trio.Nursery
    terms: FederatedTerms
    raw: bytes = b""
    networks: list[MemoryNetwork] = field(default_factory=list[MemoryNetwork])
    members: list[Participant] = field(default_factory=list[Participant])
    reports: list[list[RoundReport]] = field(default_factory=list[list[RoundReport]])
    scopes: list[trio.CancelScope] = field(default_factory=list[trio.CancelScope])
    errors: dict[int, Exception] = field(default_factory=dict[int, Exception])
    begun: trio.Event | None = None
    """Before which nobody begins; ``None``: everybody does at once."""

    def add(self, learner: Any, **options: Any) -> Participant:
        """One more member, which begins at once."""
        network = self.world.network()
        if not self.raw:
            statement = TermsStatement(bytes(32), network.peer, self.terms)
            self.raw = sign_statement(statement, network.sign)
        clock = Clock(trio.current_time, trio.current_time)
        member = Participant(network, clock, self.terms, self.raw, learner, **options)
        self.networks.append(network)
        self.members.append(member)
        self.reports.append([])
        self.scopes.append(trio.CancelScope())
        self.nursery.start_soon(self._live, len(self.members) - 1)
        return member

    async def together(self, learners: Sequence[Any], **options: Any) -> None:
        """Members that know of each other before the first round begins."""
        self.begun = trio.Event()
        for learner in learners:
            self.add(learner, **options)
        await self.begin()

    async def begin(self) -> None:
        """Let the members here begin once they know of each other; ``begun`` was set before they came."""
        until = trio.current_time() + 60
        for member in self.members:
            if not await member.peers.wait(until, partial(self._knows_all, member)):
                raise trio.TooSlowError("the members do not find each other")
        assert self.begun is not None
        self.begun.set()

    def _knows_all(self, member: Participant) -> bool:
        return len(member.board.cards) >= len(self.members)

    def kill(self, index: int) -> None:
        """A member is gone without a word."""
        if self.networks[index].peer in self.world.peers:
            self.world.kill(self.networks[index].peer)
            self.scopes[index].cancel()

    def kill_at(self, index: int, round: int, kind: str, after: int) -> None:
        """A member is gone in a round (from 0), when it has sent ``after`` parts of a kind."""
        member = self.members[index]
        pass_on = member.peers.send
        sent = 0

        async def send(peer: PeerId, message: Message, payload: Payload = b"") -> None:
            nonlocal sent
            if member.round == round and isinstance(message, UpdatePart) and message.kind == kind:
                sent += 1
                if sent > after:
                    self.kill(index)
            await pass_on(peer, message, payload)

        member.peers.send = send

    async def finished(self, members: Sequence[int], within_s: float) -> None:
        """Wait until these members have ended. Raises TooSlowError: they have not."""
        for index in members:
            await self.reached(index, self.terms.rounds, within_s)

    async def reached(self, index: int, round: int, within_s: float) -> None:
        """Wait until a member is in a round. Raises TooSlowError: it is not; or what ended a member."""
        until = trio.current_time() + within_s
        while self.members[index].round < round:
            for error in self.errors.values():
                raise error
            if trio.current_time() > until:
                raise trio.TooSlowError("\n".join(map(self._standing, range(len(self.members)))))
            await trio.sleep(0.2)

    def _standing(self, index: int) -> str:
        """What a member knows, in a line."""
        board = self.members[index].board
        standings = [(said.round, said.ready) for said in board.standings.values()]
        return f"{index}: round {self.members[index].round}, knows {standings}, {len(board.gone)} gone"

    async def _live(self, index: int) -> None:
        with self.scopes[index]:
            try:
                async with taking_part(self.members[index]) as member:
                    if self.begun is not None:
                        await self.begun.wait()
                    async for report in member.run():
                        self.reports[index].append(report)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test is told
                self.errors[index] = error


@asynccontextmanager
async def memory_run(terms: FederatedTerms) -> AsyncGenerator[MemoryRun]:
    """A run that ends with the block."""
    async with trio.open_nursery() as nursery:
        yield MemoryRun(World(), nursery, terms)
        nursery.cancel_scope.cancel()
