"""Rounds whose updates travel in few bytes: by DeMo, each a step, and in int8."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.errors import UsageError
from shoal.testing.federated import SoftmaxLearner, memory_run, unlike_data
from shoal.training.federated.demo.direction import DemoTerms
from shoal.wire.federating import UpdatePart
from tests.client.federated.run_bench import CLASSES, central, convening, learners, same_adapter, terms

DEMO = {"compress": "demo", "demo": DemoTerms(rate=0.1, warmup=2, decay=0.9, kept=256), "steps": 1}


async def test_by_demo_all_go_the_same_way_step_by_step(autojump_clock):
    async with memory_run(terms(rounds=30, least=4, **DEMO)) as run:
        await run.together(learners(4))
        await run.finished(range(4), 600)
        assert same_adapter(run, range(4))
        whole, expected = central(4, 6, 5)  # as many steps by full gradients
        whole.flat = run.members[0].state.weights
        assert whole.loss(whole.inputs, whole.labels) <= 1.05 * expected
        assert np.abs(run.members[0].momentum).max() > 0
        assert run.reports[0][-1].left_out == {}


async def test_by_demo_who_sends_what_cannot_be_is_named_and_who_dies_is_missed_by_nobody(autojump_clock):
    async with memory_run(terms(rounds=20, least=3, **DEMO)) as run:
        await run.together(learners(5))
        bad = run.members[4]
        pass_on = bad.peers.send

        async def send(peer, message, payload=b""):
            if isinstance(message, UpdatePart):
                payload = np.full(1, np.nan, "<f4").tobytes() + payload[4:]
            await pass_on(peer, message, payload)

        bad.peers.send = send
        run.kill_at(3, 10, "update", 2)  # some have its coefficients, and others not
        await run.finished([0, 1, 2], 900)
        assert same_adapter(run, [0, 1, 2])
        assert "NaN" in run.reports[0][2].left_out[bad.board.own]
        whole, expected = central(5, 4, 5)
        whole.flat = run.members[0].state.weights
        assert whole.loss(whole.inputs, whole.labels) <= 1.2 * expected


async def test_by_demo_a_step_with_too_few_moves_nothing_and_takes_nothing_from_the_momentum(autojump_clock):
    begun = {}

    class Seen(SoftmaxLearner):
        async def gradient(self, round):
            member = next(one for one in run.members if one.learner is self)
            found = await super().gradient(round)
            begun[member] = member.state.weights, member.momentum.copy(), found[0]
            return found

    async with memory_run(terms(rounds=5, least=3, **DEMO)) as run:
        await run.together([Seen(*data, CLASSES) for data in unlike_data(3)])
        *stay, dies = convening(run, 4, range(3))  # whose plan the others have, as it is not its own
        run.kill_at(dies, 4, "update", 0)
        await run.finished(stay, 300)
        for member in (run.members[index] for index in stay):
            weights, momentum, gradient = begun[member]
            assert np.array_equal(member.state.weights, weights)
            assert member.momentum == pytest.approx(np.float32(0.9) * momentum + gradient, abs=1e-6)


async def test_by_demo_who_comes_late_goes_on_with_the_others(autojump_clock):
    async with memory_run(terms(rounds=12, **DEMO)) as run:
        made = learners(3, step_s=3.0)
        run.add(made[0])
        run.add(made[1])
        await run.reached(0, 5, 300)
        run.add(made[2])
        await run.finished(range(3), 900)
        assert same_adapter(run, range(3))
        assert len(run.reports[2][-1].members) == 3


async def test_int8_sends_a_quarter_and_comes_to_nearly_the_same(autojump_clock):
    states, sent = [], []
    for form in ("none", "int8"):
        async with memory_run(terms(rounds=4, least=3, rule="trimmed", compress=form)) as run:
            await run.together(learners(3))
            await run.finished(range(3), 600)
            assert same_adapter(run, range(3))
            assert run.reports[0][-1].missing == run.reports[0][-1].left_out == {}
            states.append(run.members[0].state.weights)
            sent.append(run.members[0].terms.form.part_bytes("update", 4096))
    assert states[0] == pytest.approx(states[1], abs=0.05)
    assert sent[1] < 0.26 * sent[0]


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"rule": "median"}, "--mean median do not go together"),
        ({"secret": True, "least": 4}, "--secret do not"),
        ({"noise": 1.0}, "epsilon is not known"),
        ({"proximal": 0.1}, "one local step"),
        ({"outer_rate": 0.7}, "the sign is the step"),
        ({"steps": 20}, "each round is a step"),
        ({"demo": None}, "the terms of DeMo"),
    ],
)
def test_what_demo_cannot_be_together_with_is_refused_and_explained(other, why):
    with pytest.raises(UsageError, match=why):
        terms(**DEMO | other).check()
    terms(**DEMO).check()


def test_int8_hides_nothing():
    with pytest.raises(UsageError, match="--compress int8 and --secret"):
        terms(compress="int8", secret=True, least=4).check()
