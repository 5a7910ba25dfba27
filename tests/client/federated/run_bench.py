"""Terms and learners of federated runs in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shoal.testing.federated import SoftmaxLearner, unlike_data
from shoal.training.federated.decide import ready_members
from shoal.training.federated.statements import MemberStanding
from shoal.training.federated.terms import FederatedTerms

CLASSES, FEATURES = 4, 12
SIZE = CLASSES * FEATURES


def terms(**options):
    common = {
        "model": "fish",
        "digest": "sha256:" + "a" * 64,
        "rank": 1,
        "alpha": 1.0,
        "layers": (),
        "seed": 0,
        "size": SIZE,
        "layout": b"l" * 32,
        "rounds": 6,
        "steps": 5,
        "rule": "mean",
        "radius": 10.0,
        "gather_s": 20.0,
        "part_s": 20.0,
    }
    return FederatedTerms(**common | options)


def learners(count, examples=60, **options):
    return [SoftmaxLearner(*data, CLASSES, **options) for data in unlike_data(count, examples=examples)]


def central(count, rounds, steps, examples=60):
    """The loss over all data, and that of training on all of them in one place with as many steps."""
    data = unlike_data(count, examples=examples)
    whole = SoftmaxLearner(
        np.concatenate([x for x, _ in data]), np.concatenate([y for _, y in data]), CLASSES
    )
    for _ in range(rounds * steps):
        whole.flat = (whole.flat - np.float32(whole.rate) * whole.gradients()).astype(np.float32)
    return whole, whole.loss(whole.inputs, whole.labels)


class Poison(SoftmaxLearner):
    """It says ``times`` as much as it has learnt."""

    times = np.nan

    async def learn(self, round, steps, proximal):
        begun = self.flat.copy()
        seen = await super().learn(round, steps, proximal)
        self.flat = (begun + np.float32(self.times) * (self.flat - begun)).astype(np.float32)
        return seen


def same_adapter(run, members):
    return len({run.members[index].state.digest for index in members}) == 1


def convening(run, round, indexes):
    """These members, in the order in which they convene a round."""
    order = {run.members[index].board.own: index for index in indexes}
    standings = {peer: MemberStanding(run.members[0].board.run, peer, round, b"", True) for peer in order}
    known = replace(run.members[0].board.snapshot(), round=round, state=b"", standings=standings, gone=set())
    return [order[peer] for peer in ready_members(known)]
