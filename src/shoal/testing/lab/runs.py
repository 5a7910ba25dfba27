"""One run: its sessions ask, its events happen, and all is written down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from shoal.client.swarm import Swarm
from shoal.errors import ShoalError
from shoal.testing.lab.asking import LabRequest, TimedAnswer, ask, listen
from shoal.testing.lab.nodes import LabNode, LabSwarm
from shoal.testing.lab.plan import Event, Run
from shoal.testing.lab.schedule import covered_without

LOOK_EVERY_S = 0.005
"""How closely an answer is watched for the moment of an event."""
GUARD_S = 180.0
"""The longest that a guarded event waits for other nodes to come up."""
AGAIN_S = 0.5
"""What a session of a long run waits after an error before it asks again."""


@dataclass(frozen=True, slots=True)
class AppliedEvent:
    """An event that has taken place."""

    event: Event
    at: float
    """When, on trio's clock."""
    nodes: tuple[str, ...]
    late: bool = False
    """It was meant for the prefill, and the first token had come."""


@dataclass(eq=False)
class RunRecord:
    """What came of a run."""

    run: Run
    began: float
    asked: list[TimedAnswer] = field(default_factory=list[TimedAnswer])
    done: list[AppliedEvent] = field(default_factory=list[AppliedEvent])
    missed: list[Event] = field(default_factory=list[Event])
    """Events whose moment did not come."""

    @property
    def first(self) -> TimedAnswer | None:
        """The answer by which events are timed."""
        return next((asked for asked in self.asked if asked.session == 0), None)


async def play(lab: LabSwarm, client: Swarm, run: Run, questions: Sequence[LabRequest]) -> RunRecord:
    """Play a run to its end, then begin to bring back what it took away.

    Raises:
        ShoalError: a node that was to come back did not.
    """
    played = RunRecord(run, trio.current_time())
    async with trio.open_nursery() as happening:
        for event in run.events:
            happening.start_soon(_happen, lab, played, event, happening)
        async with trio.open_nursery() as asking:
            for session in range(run.sessions):
                asking.start_soon(_converse, client, played, questions, session)
        happening.cancel_scope.cancel()
    lab.revive_all()
    happened = [done.event for done in played.done]
    played.missed = [event for event in run.events if event not in happened]
    return played


async def _converse(client: Swarm, played: RunRecord, questions: Sequence[LabRequest], session: int) -> None:
    """Ask, and in a long run ask again and again, each time the next prompt."""
    until = played.began + 60 * played.run.minutes
    prompt = (played.run.prompt + session) % len(questions)
    while True:
        asked = ask(client, questions[prompt], prompt, session)
        played.asked.append(asked)
        await listen(asked)
        if trio.current_time() >= until:
            return
        if asked.error is not None:
            await trio.sleep(AGAIN_S)
        prompt = (prompt + 1) % len(questions)


async def _happen(lab: LabSwarm, played: RunRecord, event: Event, nursery: trio.Nursery) -> None:
    await _moment(played, event)
    nodes = await _targets(lab, played, event)
    if played.run.guarded and event.do != "revive":
        with trio.move_on_after(GUARD_S) as waiting:
            await lab.wait_until(lambda: _covered(lab, nodes), math.inf)
        if waiting.cancelled_caught:
            return  # where nodes come up slowly, there were never enough others
    first = played.first
    late = event.prefill_s is not None and first is not None and bool(first.times)
    lab.do(event.do, nodes)
    done = AppliedEvent(event, trio.current_time(), tuple(node.name for node in nodes), late)
    played.done.append(done)
    for asked in played.asked:
        if asked.ended is None:
            asked.hits.append(done.at)
    if event.for_s is not None and event.do != "revive":
        await trio.sleep(event.for_s)
        lab.do("revive", nodes)


async def _moment(played: RunRecord, event: Event) -> None:
    """Wait for the event's time."""
    if event.time_s is not None:
        await trio.sleep_until(played.began + event.time_s)
        return
    while True:
        first = played.first
        if first is not None and event.token is not None and len(first.times) >= event.token:
            return
        if first is not None and event.prefill_s is not None and first.answer.route:
            await trio.sleep(event.prefill_s)
            return
        await trio.sleep(LOOK_EVERY_S)


async def _targets(lab: LabSwarm, played: RunRecord, event: Event) -> list[LabNode]:
    """The nodes that the event is for. A hop that is gone already is waited for: another one takes its place.

    Raises:
        ShoalError: the route has no such hop.
    """
    if event.block is not None:
        return lab.serving_block(event.block)
    nodes = [lab.nodes[name] for name in event.names]
    for hop in event.hops:
        while True:
            first = played.first
            route = first.answer.route if first else ()
            if route and hop >= len(route):
                raise ShoalError(f"an event is for hop {hop}, and the route has {len(route)} hops")
            node = lab.of_peer(route[hop].peer) if route else None
            if node is not None and node.serving and not node.frozen:
                nodes.append(node)
                break
            await trio.sleep(LOOK_EVERY_S)
    return nodes


def _covered(lab: LabSwarm, without: Sequence[LabNode]) -> bool:
    """Whether these nodes are well, and every block of theirs is served by others that are."""
    others = [node.place for node in lab.nodes.values() if node.well and node not in without]
    return all(node.well and covered_without(node.place, others) for node in without)
