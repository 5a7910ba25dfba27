"""One of the processes that train together. Run as a module; what it is to do comes over its stdin.

It says where it can be reached, then what each round came to, in lines of JSON, and ends when its stdin does.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import torch
import trio

from shoal.bench.learning.small_model import EXAMPLES, Book, SmallModel, held_back_loss
from shoal.client.federated.module_learner import ModuleLearner
from shoal.client.federated.participant import Participant, taking_part
from shoal.client.federated.run_folder import read_run_terms
from shoal.executor.thread import ComputeThread
from shoal.net.host import NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.swarm.clock import Clock
from shoal.training.federated.demo.direction import DemoTerms
from shoal.types import PeerAddress, PeerId

HOST = "127.0.0.1"
LOOKS = 20
"""How often in a run the loss over the text that was kept back is looked at."""


class MemberOrder(msgspec.Struct, frozen=True):
    """What a member is told."""

    index: int
    seed: int
    """Of the model's first parameters, the same for all."""
    rates: DemoTerms
    """By which AdamW's rate of local steps rises and falls as DeMo's does."""
    terms: bytes
    """The run's terms, as they are signed."""
    secret: bytes
    """Of the network that its members alone are in."""
    first: tuple[str, tuple[str, ...], tuple[str, ...]] | None = None
    """Where the first member is: peer, addresses, direct addresses."""


@dataclass(frozen=True, slots=True)
class LearntRound:
    """What a member says of a round."""

    round: int
    """From 1."""
    loss: float
    sent: int
    """Bytes since the round before, all that a member says to the others among them."""
    held_back: float | None
    left_out: int


def is_looked_at(number: int, last: int) -> bool:
    """Whether the loss over the text that was kept back is taken after a round or step, the first being 1."""
    return number == last or number % max(1, last // LOOKS) == 0


def main() -> None:
    """Take part in the run of the order in the first line of stdin."""
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=MemberOrder)
    torch.set_num_threads(1)
    trio.run(_take_part, order)


async def _take_part(order: MemberOrder) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_with_stdin, nursery.cancel_scope)
        await _learn(order)
        nursery.cancel_scope.cancel()


async def _end_with_stdin(scope: trio.CancelScope) -> None:
    while await trio.to_thread.run_sync(os.read, 0, 4096, abandon_on_cancel=True):
        pass
    scope.cancel()


async def _learn(order: MemberOrder) -> None:
    terms, model, book = read_run_terms(order.terms), SmallModel(order.seed), Book()
    thread = ComputeThread("shoal-learning")
    learner = ModuleLearner(
        model,
        lambda step: (model.loss(book.examples(order.index, step)), EXAMPLES),
        thread,
        rate_of=lambda step: order.rates.rate_of(step, terms.rounds * terms.steps),
    )
    settings = NetworkSettings(Identity.ephemeral(), order.secret, host=HOST, relay=False)
    async with open_network(settings) as network:
        participant = Participant(network, Clock(), terms, order.terms, learner)
        async with taking_part(participant):
            address = network.address
            _say("listening", {"first": [address.peer, address.libp2p, address.direct]})
            if order.first is not None:
                peer, libp2p, direct = order.first
                await participant.peers.meet(PeerAddress(PeerId(peer), tuple(libp2p), tuple(direct)))
            async for done in participant.run():
                loss = None
                if order.index == 0 and is_looked_at(done.round, terms.rounds):
                    learner.put(participant.state.weights)
                    loss = await thread.run(lambda: held_back_loss(model, book))
                learnt = LearntRound(done.round, done.loss, done.sent_in_round, loss, len(done.left_out))
                _say("round", asdict(learnt))
            _say("done", {"digest": participant.state.digest.hex()})


def _say(event: str, fields: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
