"""Federated rounds in memory: members that die, send poison, come late, or are cut off."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import trio
from msgspec import structs
from trio.testing import MockClock

from shoal.errors import NotRunning, UsageError
from shoal.testing.federated import SoftmaxLearner, memory_run, unlike_data
from shoal.training.federated.decide import ready_members
from shoal.training.federated.demo.direction import DemoTerms
from shoal.training.federated.private import spent_epsilon
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    PlannedMember,
    RoundPlan,
    sign_statement,
)
from shoal.training.federated.terms import FederatedTerms
from shoal.wire.federating import UpdatePart

CLASSES, FEATURES = 4, 12


@pytest.fixture
def autojump_clock():
    """At once, where nothing is left to be done: there are no threads here."""
    return MockClock(autojump_threshold=0)


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


async def test_all_members_end_with_the_same_adapter_as_good_as_one_of_all_data(autojump_clock):
    async with memory_run(terms(rounds=12, least=4)) as run:
        await run.together(learners(4))
        await run.finished(range(4), 600)
        assert same_adapter(run, range(4))
        whole, expected = central(4, 12, 5)
        whole.flat = run.members[0].state.weights
        assert whole.loss(whole.inputs, whole.labels) == pytest.approx(expected, rel=0.03)
        last = run.reports[0][-1]
        assert (last.round, len(last.members), last.left_out, last.missing) == (12, 4, {}, {})


async def test_two_die_in_mid_round_and_one_sends_poison_and_the_others_lose_nothing(autojump_clock):
    async with memory_run(terms(rounds=15, least=5)) as run:
        made = learners(8, 400)
        made[7] = Poison(made[7].inputs, made[7].labels, CLASSES)
        await run.together(made)
        stay = [0, 1, 2, 3, 4]

        run.kill_at(5, 2, "update", 3)  # some owners have its part, and others not
        run.kill_at(6, 4, "mean", 2)  # some members have the mean of its part, and others not
        await run.finished([*stay, 7], 900)
        assert same_adapter(run, [*stay, 7])
        poison = run.members[7].board.own
        for report in run.reports[0]:
            if poison in report.members:
                assert "NaN" in report.left_out[poison]
        assert sum(poison in report.members for report in run.reports[0]) >= 12
        whole, expected = central(8, 15, 5, 400)
        whole.flat = run.members[0].state.weights
        loss = whole.loss(whole.inputs, whole.labels)
        print(f"federated {loss:.4f}, central {expected:.4f}: {loss / expected - 1:+.2%}")
        assert loss <= 1.03 * expected


async def test_who_sends_too_much_or_the_wrong_way_is_bounded(autojump_clock):
    async with memory_run(terms(rounds=8, rule="clipping", radius=3.0, least=6)) as run:
        made = learners(6, 200)
        made[4] = Poison(made[4].inputs, made[4].labels, CLASSES)
        made[4].times = 1e30  # named
        made[5] = Poison(made[5].inputs, made[5].labels, CLASSES)
        made[5].times = -4  # within the norm that is allowed: nobody can tell, but the rule bears it
        await run.together(made)

        async def unclipped(update):
            return update

        run.members[4]._private = unclipped
        await run.finished(range(6), 600)
        assert same_adapter(run, range(6))
        huge, turned = (run.members[index].board.own for index in (4, 5))
        assert "norm is" in run.reports[0][3].left_out[huge]
        assert turned not in run.reports[0][3].left_out
        whole, expected = central(6, 8, 5, 200)
        whole.flat = run.members[0].state.weights
        assert whole.loss(whole.inputs, whole.labels) <= 1.2 * expected  # by the mean, more than twice


async def test_a_norm_far_below_the_updates_slows_the_adapter_and_leaves_nobody_out(autojump_clock):
    async with memory_run(terms(rounds=3, radius=0.01, least=3)) as run:
        await run.together(learners(3))
        await run.finished(range(3), 300)
        assert [report.left_out for report in run.reports[0]] == [{}, {}, {}]
        assert 0.01 < np.linalg.norm(run.members[0].state.weights) <= 0.0301


async def test_a_part_of_another_size_is_left_out_and_its_sender_named(autojump_clock):
    async with memory_run(terms(rounds=2, least=3)) as run:
        await run.together(learners(3))
        bad = run.members[2]
        pass_on = bad.peers.send

        async def send(peer, message, payload=b""):
            if isinstance(message, UpdatePart) and message.kind == "update":
                message = structs.replace(message, size=7)
                payload = b"seven!!"
            await pass_on(peer, message, payload)

        bad.peers.send = send
        await run.finished(range(3), 300)
        assert same_adapter(run, range(3))
        assert "0 numbers and not 16" in run.reports[0][0].left_out[bad.board.own]


async def test_an_owner_whose_mean_cannot_be_is_not_followed(autojump_clock):
    async with memory_run(terms(rounds=2, radius=1.0, least=2)) as run:
        await run.together(learners(3))
        bad = run.members[1]
        pass_on = bad.peers.send

        async def send(peer, message, payload=b""):
            if isinstance(message, UpdatePart) and message.kind == "mean":
                payload = np.full(len(payload) // 4, 50, "<f4").tobytes()
            await pass_on(peer, message, payload)

        bad.peers.send = send
        await run.finished([0, 2], 300)
        assert same_adapter(run, [0, 2])
        assert "no mean of updates" in run.reports[0][0].missing[bad.board.own]


async def test_nobody_is_drawn_into_a_round_of_two_by_who_convenes_it(autojump_clock):
    async with memory_run(terms(rounds=2, least=4)) as run:
        await run.together(learners(5))
        bad, victim = run.members[4], run.members[0].board.own
        say = bad.peers.say

        def convene_with_one(statement):
            say(statement)
            if isinstance(statement, MemberStanding) and statement.ready:
                pair = tuple(PlannedMember(peer, statement.examples) for peer in (victim, bad.board.own))
                say(RoundPlan(bad.board.run, bad.board.own, bad.round, bad.state.digest, pair))

        bad.peers.say = convene_with_one
        await run.finished(range(4), 300)
        assert same_adapter(run, range(4))
        assert all(len(report.members) >= 4 for report in run.reports[0])


async def test_who_comes_late_has_the_adapter_from_the_others(autojump_clock):
    async with memory_run(terms(rounds=6)) as run:
        made = learners(4)
        for learner in made[:3]:
            run.add(learner)
        await run.reached(0, 2, 300)
        run.add(made[3])
        await run.finished(range(4), 600)
        assert same_adapter(run, range(4))
        assert run.reports[3][0].members == ()  # the first it came to had been without it
        assert len(run.reports[3][-1].members) == 4


async def test_the_adapter_is_asked_of_others_when_one_is_forgotten_or_says_nothing(autojump_clock):
    async with memory_run(terms(rounds=6)) as run:
        await run.together(learners(4))
        await run.reached(0, 2, 300)
        one = run.members[0]
        digest, peers = b"d" * 32, [member.board.own for member in run.members[1:]]
        asked = []

        async def ask(peer, digest):
            asked.append(peer)
            if (
                len(asked) == 1
            ):  # the first says nothing, and meanwhile the second has made place for a newcomer
                for other in set(peers) - {peer}:
                    del one.board.cards[other]
                await trio.sleep_forever()
            return await type(one.peers)._ask_state(one.peers, peer, digest)

        one.peers._ask_state = ask
        said = MemberStanding(one.board.run, "", 2, digest)
        one.board.standings = {peer: structs.replace(said, peer=peer) for peer in peers}
        begun = trio.current_time()
        assert await one.peers.fetch_state(digest, SIZE, 9.0) is None
        assert len(asked) == 3
        assert trio.current_time() - begun <= 9.0


async def test_a_member_whose_clock_was_set_back_goes_above_what_it_said_before(autojump_clock):
    async with memory_run(terms(rounds=3, least=3)) as run:
        run.begun = trio.Event()
        for learner in learners(3):
            run.add(learner)
        network, member = run.networks[2], run.members[2]
        before = 10**9  # of its clock before
        old = MemberStanding(member.board.run, network.peer, 0, b"o" * 32, False, 0, before)
        card = MemberCard(member.board.run, network.peer, (), (), before)
        for said in (card, old):
            run.members[0].peers._hear(network.peer, sign_statement(said, network.sign))
        run.begun.set()
        await run.finished(range(3), 300)
        assert same_adapter(run, range(3))
        assert len(run.reports[0][0].members) == 3
        assert run.members[0].board.standings[network.peer].number > before


async def test_a_part_waits_for_the_statements_before_it_and_not_for_those_that_follow(autojump_clock):
    async with memory_run(terms()) as run:
        run.begun = trio.Event()
        one, other = (run.add(learner) for learner in learners(2))
        await one.peers.wait(60, lambda: other.board.own in one.board.cards)
        sent = []

        async def send(peer, message, payload=b""):
            if not isinstance(message, UpdatePart):
                await trio.sleep(3)
            sent.append(message)

        one.peers.send = send
        one.peers.introduce()
        part = UpdatePart(one.board.run, 0, b"p" * 32, 0, "update", 0)
        one.peers.post(other.board.own, part, b"", trio.current_time() + 20)
        for _ in range(20):
            await trio.sleep(1)
            one.peers.introduce()
        assert 1 <= sent.index(part) <= 3


async def test_a_slow_member_is_left_out_of_a_round_and_goes_on_with_the_others(autojump_clock):
    async with memory_run(terms(rounds=4, gather_s=5.0)) as run:
        made = learners(3)
        made[2].step_s = 3.0  # 15 s a round
        await run.together(made)
        await run.finished(range(3), 600)
        assert same_adapter(run, range(3))
        assert len(run.reports[0][1].members) == 2


async def test_a_member_goes_on_from_what_it_kept(autojump_clock):
    kept = {}

    async def save(round, state):
        kept["at"] = round, state

    async with memory_run(terms(rounds=12)) as run:
        made = learners(3)
        run.add(made[0])
        run.add(made[1])
        run.add(made[2], save=save)
        await run.reached(2, 2, 300)
        run.kill(2)
        await run.reached(0, 5, 300)
        round, state = kept["at"]
        assert round >= 2
        run.add(made[2], round=round, state=state)
        await run.finished([0, 1, 3], 600)
        assert same_adapter(run, [0, 1, 3])


async def test_without_enough_members_it_ends_and_says_so(autojump_clock):
    async with memory_run(terms(least=3)) as run:
        for learner in learners(2):
            run.add(learner, patience_s=30.0)
        with pytest.raises(NotRunning, match="2 of at least 3 members"):
            await run.finished([0], 600)


async def test_momentum_is_shared_as_the_weights_are(autojump_clock):
    options = {"outer_rate": 0.7, "outer_momentum": 0.5, "proximal": 0.1, "rounds": 10, "least": 3}
    async with memory_run(terms(**options)) as run:
        await run.together(learners(3))
        await run.finished(range(3), 600)
        assert same_adapter(run, range(3))
        assert np.abs(run.members[0].state.momentum).max() > 0
        whole, expected = central(3, 10, 5)
        whole.flat = run.members[0].state.weights
        assert whole.loss(whole.inputs, whole.labels) == pytest.approx(expected, rel=0.03)


async def test_noise_is_added_before_anybody_sees_an_update_and_epsilon_is_told(autojump_clock):
    kept = []

    async def keep_spent(count):
        kept.append(count)

    async with memory_run(terms(rounds=3, noise=0.02, radius=5.0, least=3)) as run:
        await run.together(learners(3), spent=4, keep_spent=keep_spent)
        await run.finished(range(3), 300)
        assert same_adapter(run, range(3))
        assert kept[:3] == [5, 5, 5]
        told = [report.epsilon for report in run.reports[0]]
        assert told == [spent_epsilon(0.02, count) for count in (5, 6, 7)]


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
        run.kill_at(2, 4, "update", 0)
        await run.finished([0, 1], 300)
        for member in run.members[:2]:
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


SECRET = {"secret": True, "least": 4, "radius": 5.0, "gather_s": 5.0, "part_s": 3.0}


async def test_a_secret_sum_comes_to_what_the_open_one_does():
    """On the real clock: the masks are made on threads."""
    states = []
    for options in (SECRET, SECRET | {"secret": False}):
        async with memory_run(terms(rounds=2, **options)) as run:
            await run.together(learners(5, step_s=0.0))
            await run.finished(range(5), 60)
            assert same_adapter(run, range(5))
            assert run.reports[0][-1].missing == {}
            states.append(run.members[0].state.weights)
    assert states[0] == pytest.approx(states[1], abs=1e-5)


def last_to_convene(run, round, indexes):
    """Of these members, the one that convenes a round when all others do not."""
    order = {run.members[index].board.own: index for index in indexes}
    standings = {peer: MemberStanding(run.members[0].board.run, peer, round, b"", True) for peer in order}
    known = replace(run.members[0].board.snapshot(), round=round, state=b"", standings=standings, gone=set())
    return order[ready_members(known)[-1]]


async def test_who_drops_out_of_a_secret_sum_does_not_spoil_it():
    # Eight members on the cores of one machine: parts have time enough where it is busy.
    async with memory_run(terms(rounds=4, **SECRET | {"part_s": 10.0})) as run:
        await run.together(learners(8, step_s=0.0))
        first, second = last_to_convene(run, 1, range(8)), last_to_convene(run, 2, range(8))
        run.kill_at(first, 1, "update", 2)  # in the midst of its masked parts
        if second != first:
            run.kill_at(second, 2, "mean", 0)  # when it is to give its mean
        stay = [index for index in range(8) if index not in (first, second)]
        await run.finished(stay, 90)
        assert same_adapter(run, stay)
        reports = run.reports[stay[0]]
        assert "dropped out" in reports[1].left_out[run.members[first].board.own]
        assert reports[3].missing == {}
        whole, expected = central(8, 4, 5)
        whole.flat = run.members[stay[0]].state.weights
        assert whole.loss(whole.inputs, whole.labels) <= 1.15 * expected


async def test_of_an_update_nothing_but_masked_parts_leaves_its_member_where_sums_are_secret():
    seen = []
    async with memory_run(terms(rounds=1, **SECRET)) as run:
        await run.together(learners(4, step_s=0.0))
        for member in run.members:
            pass_on = member.peers.send

            async def send(peer, message, payload=b"", member=member, pass_on=pass_on):
                if isinstance(message, UpdatePart) and message.kind == "update":
                    seen.append(payload)
                await pass_on(peer, message, payload)

            member.peers.send = send
        await run.finished(range(4), 60)
        sent = b"".join(seen)
        assert len(sent) == 4 * 3 * (SIZE // 4) * 8
        # An open part has the high bits of small integers: all zeros or all ones.
        high = np.frombuffer(sent, "<u8") >> np.uint64(56)
        assert len(set(high.tolist())) > 100


def test_robust_and_secret_together_are_refused_and_explained():
    with pytest.raises(UsageError, match="secret sums show nobody any of them"):
        terms(secret=True, rule="median", least=4).check()
    with pytest.raises(UsageError, match="two know what the third adds"):
        terms(secret=True).check()
    with pytest.raises(UsageError, match="the terms of a run cannot be"):
        terms(outer_momentum=1.0).check()
    terms(secret=True, least=4).check()
