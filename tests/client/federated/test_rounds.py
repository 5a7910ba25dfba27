"""Federated rounds in memory: members that die, send poison, come late, or are cut off."""

from __future__ import annotations

import numpy as np
import pytest
import trio
from msgspec import structs

from shoal.errors import NotRunning
from shoal.testing.federated import memory_run
from shoal.training.federated.private import spent_epsilon
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    PlannedMember,
    RoundPlan,
    sign_statement,
)
from shoal.wire.federating import UpdatePart
from tests.client.federated.run_bench import CLASSES, SIZE, Poison, central, learners, same_adapter, terms


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


async def test_members_of_unlike_speed_are_in_one_round_all_of_them(autojump_clock):
    """The last one is ready long after the first: whose turn it is to convene is counted from then."""
    async with memory_run(terms(rounds=4, least=6)) as run:
        made = learners(6)
        for number, learner in enumerate(made):
            learner.step_s = 0.7 * number
        await run.together(made)
        await run.finished(range(6), 600)
        assert same_adapter(run, range(6))
        for reports in run.reports:
            for report in reports:
                assert (len(report.members), report.left_out, report.missing) == (6, {}, {})


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
        made, run.begun = learners(3), trio.Event()
        run.add(made[0])
        run.add(made[1])
        run.add(made[2], save=save)
        await run.begin()
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


async def test_a_round_that_was_missed_tells_what_was_sent_and_what_it_has_shown(autojump_clock):
    async with memory_run(terms(rounds=4, gather_s=5.0, noise=0.02, radius=5.0)) as run:
        made = learners(3)
        made[2].step_s = 3.0  # 15 s a round
        await run.together(made, spent=4)
        await run.finished(range(3), 600)
        reports = run.reports[2]
        missed = [report for report in reports if not report.members]
        assert missed
        assert all(report.epsilon >= spent_epsilon(0.02, 4) for report in missed)
        assert missed[-1].epsilon > spent_epsilon(0.02, 4)  # noise is counted once it is drawn
        assert all(0 < report.sent_in_round <= report.sent for report in reports)
        assert sum(report.sent_in_round for report in reports) == reports[-1].sent
