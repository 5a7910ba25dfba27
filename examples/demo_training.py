"""Training by DeMo: members whose data differ train a small model from scratch, and send little of each step.

python demo_training.py [STEPS] [MEMBERS]

Each member keeps its momentum to itself, and sends in each step the few coefficients in which it is largest,
32 of 4,096; all go the same way by them. Any module of torch is trained so. Members are in this one program;
on machines of their own each is the function ``member``, with the address of one of the others.
"""

import secrets
import sys

import torch
import trio

from shoal.client.federated.module_learner import ModuleLearner
from shoal.client.federated.participant import Participant, taking_part
from shoal.executor.thread import ComputeThread
from shoal.net.host import NetworkSettings, open_network
from shoal.net.identity import Identity
from shoal.swarm.clock import Clock
from shoal.training.federated.demo.direction import DemoTerms
from shoal.training.federated.statements import TermsStatement, sign_statement
from shoal.training.federated.terms import FederatedTerms, adam_radius
from shoal.types import PeerAddress

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 100
MEMBERS = int(sys.argv[2]) if len(sys.argv) > 2 else 3
SECRET = secrets.token_bytes(32)  # of a network that only these members are in
RATE = 1e-2


def new_model() -> torch.nn.Module:
    torch.manual_seed(0)  # all members begin with the same one
    return torch.nn.Sequential(
        torch.nn.Linear(2, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 64),
        torch.nn.GELU(),
        torch.nn.Linear(64, 2),
    )


def examples(member: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Points of a disc, and whether each is in a ring; a member sees its own slice of the disc."""
    chance = torch.Generator().manual_seed(1000 * step + member)
    angle = 2 * torch.pi * (member + torch.rand(64, generator=chance)) / MEMBERS
    radius = torch.rand(64, generator=chance)
    points = torch.stack([2 * radius * angle.cos(), 2 * radius * angle.sin()], 1)
    return points, ((radius > 0.4) & (radius < 0.8)).long()


def loss_of(model: torch.nn.Module, member: int, step: int) -> torch.Tensor:
    points, inside = examples(member, step)
    return torch.nn.functional.cross_entropy(model(points), inside)


async def member(
    number: int,
    terms: FederatedTerms,
    signed: bytes,
    learner: ModuleLearner,
    first: PeerAddress | None,
    *,
    task_status: trio.TaskStatus[PeerAddress],
) -> None:
    """``first``: where another member is; the very first one has nobody to ask."""
    settings = NetworkSettings(Identity.ephemeral(), SECRET, host="127.0.0.1", relay=False)
    async with open_network(settings) as network:
        participant = Participant(network, Clock(), terms, signed, learner)
        async with taking_part(participant):
            task_status.started(network.address)
            if first is not None:
                await participant.peers.meet(first)
            async for done in participant.run():
                if number == 0 and (done.round == 1 or done.round % 10 == 0):
                    print(f"step {done.round}: {done.sent_in_round / 1000:.1f} kB sent", flush=True)
            learner.put(participant.state.weights)


async def main() -> None:
    models = [new_model() for _ in range(MEMBERS)]
    thread = ComputeThread("learning")
    learners = [
        ModuleLearner(model, lambda step, n=n, model=model: (loss_of(model, n, step), 64), thread)
        for n, model in enumerate(models)
    ]
    layout, starter = learners[0].layout, Identity.ephemeral()
    terms = FederatedTerms(
        model="ring",
        digest="ring",
        rank=1,  # of an adapter, which this is not
        alpha=1.0,
        layers=(),
        seed=0,
        size=layout.size,
        layout=layout.digest,
        rounds=STEPS,
        steps=1,
        rule="mean",
        radius=adam_radius(RATE, 1, layout.size),
        least=MEMBERS,
        compress="demo",
        demo=DemoTerms(RATE, warmup=5),
    )
    signed = sign_statement(TermsStatement(bytes(32), starter.peer, terms), starter.sign)

    def told(model: torch.nn.Module) -> str:
        with torch.no_grad():
            return f"{sum(float(loss_of(model, n, -1)) for n in range(MEMBERS)) / MEMBERS:.3f}"

    print(f"{layout.size} numbers, loss {told(models[0])}")
    first: PeerAddress | None = None
    async with trio.open_nursery() as nursery:
        for number, learner in enumerate(learners):
            address = await nursery.start(member, number, terms, signed, learner, first)
            first = first or address
    thread.close()
    print(f"all {MEMBERS} members: loss {', '.join(map(told, models))}")


trio.run(main)
