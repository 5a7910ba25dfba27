"""A run: its events come at their moment, to the nodes that they are for."""

from __future__ import annotations

import pytest
import trio

from shoal.errors import ChannelClosed, ShoalError
from shoal.testing.lab import runs
from shoal.testing.lab.asking import PATIENCE_S, LabRequest, ask, listen
from shoal.testing.lab.plan import Event, Run
from shoal.testing.lab.runs import play

from .conftest import FakeClient, delta, fake_lab, route

QUESTIONS = [LabRequest("m", [1], 8, None), LabRequest("m", [2], 8, None)]
TWO = {"a1": "0:1", "a2": "0:1", "b1": "1:2", "b2": "1:2"}


async def steady(answer):
    """A second of prefill, then a token a second. The second token comes over other nodes."""
    answer.route = route("peer-a1", "peer-b1")
    for token in range(8):
        await trio.sleep(1)
        if token == 4:
            answer.route = route("peer-a2", "peer-b1")
        yield delta(token)


def moments(lab):
    return [(round(at), deed, names) for at, deed, names in lab.deeds[:-1]]


async def test_an_event_comes_with_its_token_and_to_the_hop_of_that_moment(autojump_clock):
    lab = fake_lab(TWO)
    run = Run(events=[Event(do="kill", hop=0, token=2), Event(do="kill", hop=0, token=6)])
    played = await play(lab, FakeClient(steady), run, QUESTIONS)
    assert moments(lab) == [(2, "kill", ("a1",)), (6, "kill", ("a2",))]
    assert played.missed == []
    assert played.asked[0].hits == [done.at for done in played.done]
    assert lab.deeds[-1][1] == "revive"


async def test_a_hop_that_is_gone_already_is_waited_for(autojump_clock):
    lab = fake_lab(TWO)
    run = Run(events=[Event(do="kill", hop=0, token=1), Event(do="kill", hop=0, token=2)])
    await play(lab, FakeClient(steady), run, QUESTIONS)
    assert moments(lab) == [(1, "kill", ("a1",)), (5, "kill", ("a2",))]


async def test_an_event_in_the_prefill_comes_before_the_first_token(autojump_clock):
    lab = fake_lab(TWO)
    run = Run(events=[Event(do="freeze", hop=[0, 1], prefill_s=0.3, for_s=3)])
    played = await play(lab, FakeClient(steady), run, QUESTIONS)
    assert moments(lab) == [(0, "freeze", ("a1", "b1")), (3, "revive", ("a1", "b1"))]
    assert not played.done[0].late
    (late,) = (
        await play(
            fake_lab(TWO), FakeClient(steady), Run(events=[Event(do="kill", hop=0, prefill_s=2)]), QUESTIONS
        )
    ).done
    assert late.late


async def test_an_event_for_a_block_is_for_every_node_that_serves_it(autojump_clock):
    lab = fake_lab(TWO)
    await play(lab, FakeClient(steady), Run(events=[Event(do="kill", block=1, time_s=2.5)]), QUESTIONS)
    assert lab.deeds[0][2] == ("b1", "b2")


async def test_an_event_whose_moment_does_not_come_is_missed(autojump_clock):
    event = Event(do="kill", hop=0, token=9)
    played = await play(fake_lab(TWO), FakeClient(steady), Run(events=[event]), QUESTIONS)
    assert played.missed == [event]


async def test_a_guarded_event_waits_for_another_node_of_its_blocks(autojump_clock):
    lab = fake_lab(TWO)
    events = [
        Event(do="kill", node="a1", time_s=1, for_s=3),
        Event(do="kill", node="a2", time_s=2),
    ]
    await play(lab, FakeClient(steady), Run(events=events, guarded=True), QUESTIONS)
    assert [deed for _, deed, _ in lab.deeds[:3]] == ["kill", "revive", "kill"]
    assert lab.deeds[2][0] == pytest.approx(4, abs=0.2)


async def test_a_guarded_event_whose_nodes_are_never_spared_does_not_take_place(autojump_clock, monkeypatch):
    monkeypatch.setattr(runs, "GUARD_S", 2.0)
    lab = fake_lab(TWO)
    events = [Event(do="kill", node="a1", time_s=1), Event(do="kill", node="a2", time_s=2)]
    played = await play(lab, FakeClient(steady), Run(events=events, guarded=True), QUESTIONS)
    assert [names for _, deed, names in lab.deeds if deed == "kill"] == [("a1",)]
    assert played.missed == events[1:]


async def test_sessions_ask_different_prompts_again_and_again_in_a_long_run(autojump_clock):
    run = Run(sessions=2, minutes=0.25)
    played = await play(fake_lab(TWO), FakeClient(steady), run, QUESTIONS)
    asked = [(asked.session, asked.prompt) for asked in played.asked]
    assert (sorted(asked[:2]), sorted(asked[2:])) == ([(0, 0), (1, 1)], [(0, 1), (1, 0)])


async def test_a_hop_that_the_route_does_not_have_is_an_error(autojump_clock):
    run = Run(events=[Event(do="kill", hop=2, token=1)])
    with pytest.RaisesGroup(pytest.RaisesExc(ShoalError, match="has 2 hops")):
        await play(fake_lab(TWO), FakeClient(steady), run, QUESTIONS)


async def test_an_answer_is_timed_and_its_error_kept(autojump_clock):
    async def broken(answer):
        await trio.sleep(1)
        yield delta(5)
        raise ChannelClosed("gone")

    asked = ask(FakeClient(broken), QUESTIONS[0], 0)  # type: ignore[arg-type]
    await listen(asked)
    assert asked.times == [pytest.approx(1)]
    assert isinstance(asked.error, ChannelClosed)


async def test_an_answer_that_never_ends_is_given_up(autojump_clock):
    async def hanging(answer):
        yield delta(5)
        await trio.sleep_forever()

    asked = ask(FakeClient(hanging), QUESTIONS[0], 0)  # type: ignore[arg-type]
    await listen(asked)
    assert asked.ended == pytest.approx(PATIENCE_S)
    assert "heard nothing" in str(asked.error)
