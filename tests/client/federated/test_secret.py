"""Secret sums over the network: what they come to, who drops out of them, and a convener that lies."""

from __future__ import annotations

import numpy as np
import pytest
import trio
from msgspec import structs

from shoal.errors import UsageError
from shoal.testing.federated import memory_run
from shoal.wire.federating import SecretList, SecretShown, UpdatePart
from tests.client.federated.run_bench import SIZE, central, convening, learners, same_adapter, terms

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


@pytest.fixture
def without_threads(monkeypatch):
    """What is computed on threads is computed at once, so that the clock may jump."""

    async def at_once(compute, *args, **options):
        return compute(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", at_once)


async def test_who_drops_out_of_a_secret_sum_does_not_spoil_it(autojump_clock, without_threads):
    async with memory_run(terms(rounds=4, **SECRET)) as run:
        await run.together(learners(6, step_s=0.0))
        first, second = convening(run, 1, range(6))[-1], convening(run, 2, range(6))[-1]
        run.kill_at(first, 1, "update", 2)  # in the midst of its masked parts
        if second != first:
            run.kill_at(second, 2, "mean", 0)  # when it is to give its mean
        stay = [index for index in range(6) if index not in (first, second)]
        await run.finished(stay, 90)
        assert same_adapter(run, stay)
        reports = run.reports[stay[0]]
        assert "dropped out" in reports[1].left_out[run.members[first].board.own]
        assert reports[3].missing == {}
        whole, expected = central(6, 4, 5)
        whole.flat = run.members[stay[0]].state.weights
        assert whole.loss(whole.inputs, whole.labels) <= 1.15 * expected


def on_the_way(member, change):
    """What a member sends is what ``change`` makes of it; nothing, where it makes none."""
    pass_on = member.peers.send

    async def send(peer, message, payload=b""):
        changed = await change(peer, message)
        if changed is not None:
            await pass_on(peer, changed, payload)

    member.peers.send = send


def is_part(message, round):
    return isinstance(message, UpdatePart) and (message.kind, message.round) == ("update", round)


def is_list(message, round, stage):
    return isinstance(message, SecretList) and (message.stage, message.round) == (stage, round)


@pytest.mark.parametrize("lies", [True, False])
async def test_who_lacks_a_part_that_counts_gives_no_mean_and_goes_on_with_the_others(
    lies, autojump_clock, without_threads
):
    """A convener may say what it likes, and one that does not lie counts without whom it has not heard."""
    async with memory_run(terms(rounds=2, **SECRET)) as run:
        await run.together(learners(5))
        convener, silent, victim, *others = convening(run, 0, range(5))
        lacking = run.members[victim].board.own

        async def without_one_part(peer, message):
            return None if peer == lacking and is_part(message, 0) else message

        async def all_count(peer, message):
            if isinstance(message, SecretShown) and message.round == 0:
                return None  # it would be by the list that it has told nobody
            counted = is_list(message, 0, "counted")
            return structs.replace(message, members=tuple(range(5))) if counted else message

        async def too_late(peer, message):
            return None if is_list(message, 0, "came") else message

        on_the_way(run.members[silent], without_one_part)
        if lies:
            on_the_way(run.members[convener], all_count)
        else:
            on_the_way(run.members[victim], too_late)
        await run.finished(range(5), 300)
        assert same_adapter(run, range(5))
        first, last = (run.reports[others[0]][round] for round in (0, -1))
        without = {victim, convener} if lies else {victim}
        assert first.missing.keys() == {run.members[index].board.own for index in without}
        assert run.reports[victim][0].missing.keys() == first.missing.keys() - {lacking}
        assert (lacking in first.left_out) == (not lies)
        assert np.abs(run.members[victim].state.weights).max() > 0
        assert (last.missing, last.left_out) == ({}, {})


async def test_a_convener_that_counts_nobody_who_takes_part_brings_down_no_member(
    autojump_clock, without_threads
):
    async with memory_run(terms(rounds=2, **SECRET)) as run:
        await run.together(learners(5))
        convener, victim, *others = convening(run, 0, range(5))
        excluded = run.members[victim].board.own

        async def told_otherwise(peer, message):
            place = sorted(member.board.own for member in run.members).index(excluded)
            if peer == excluded and is_list(message, 0, "among"):
                return structs.replace(message, members=tuple({*range(5)} - {place}))
            if peer == excluded and is_list(message, 0, "counted"):
                await trio.sleep(0.02)  # until the others have shown what they have
                return structs.replace(message, members=(place,) * 5)
            return message

        on_the_way(run.members[convener], told_otherwise)
        await run.finished(range(5), 300)
        assert same_adapter(run, range(5))
        assert run.reports[others[0]][0].missing.keys() == {excluded}
        assert run.reports[others[0]][-1].missing == {}


async def test_of_an_update_nothing_but_masked_parts_leaves_its_member_where_sums_are_secret(
    autojump_clock, without_threads
):
    seen = []
    async with memory_run(terms(rounds=1, **SECRET)) as run:
        await run.together(learners(4))
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
