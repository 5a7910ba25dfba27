"""What waits at a hop: in order, within bounds, and without a thread."""

from __future__ import annotations

from collections import deque

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import Busy, PositionGap, RemoteProtocolError
from shoal.testing.byhand import NUMERICS
from shoal.wire.hop_queue import MAX_STEPS, HopQueue
from shoal.wire.messages import Open, Step
from shoal.wire.payload import hidden_states

SESSION = bytes(16)
WIDTH = 8


def a_queue(tokens: int = 100, now: float = 0.0) -> HopQueue:
    return HopQueue(Open(SESSION, "sha256:", "fp32", 0, 1, tokens, 0, None, None, NUMERICS), WIDTH, now)


def a_step(position: int = 0, tokens: int = 1, number: int = 1, **changes: object) -> Step:
    step = Step(SESSION, number, position, tokens, 0, hidden_states("float32", tokens, WIDTH))
    return msgspec.structs.replace(step, **changes)


def enter(queue: HopQueue, step: Step, *, room: bool = True, now: float = 0.0) -> bool:
    queue.accept(step)
    return queue.put(step, b"", now, room=room)


def test_a_step_runs_when_what_comes_out_has_room() -> None:
    queue, step = a_queue(), a_step(0, 5)
    assert enter(queue, step)
    assert (queue.steps, queue.held, queue.computing) == (1, 0, True)
    queue.done(step)
    assert (queue.steps, queue.computing) == (0, False)


def test_without_room_steps_are_held_and_those_behind_them_too_in_their_order() -> None:
    queue, first, second, third = a_queue(), a_step(0), a_step(1, number=2), a_step(2, number=3)
    assert enter(queue, first)
    assert not enter(queue, second, room=False)
    assert not enter(queue, third, room=True)
    assert (queue.steps, queue.held) == (3, 2)
    assert [queue.next_held()[0] for _ in range(2)] == [second, third]
    assert enter(queue, a_step(3, number=4))


def test_what_is_held_is_dropped_when_a_later_step_goes_back_to_before_it() -> None:
    queue = a_queue(100)
    assert enter(queue, a_step(0, 5))
    for number, position in enumerate((5, 6, 7), 2):
        enter(queue, a_step(position, number=number), room=False)
    again = a_step(6, 2, number=5)
    assert not enter(queue, again, room=True)
    assert (queue.steps, queue.held, queue.computing) == (3, 2, True)
    assert [queue.next_held()[0].number for _ in range(2)] == [2, 5]
    for step in (a_step(0, 5), a_step(5), again):
        queue.done(step)
    assert (queue.steps, queue.computing) == (0, False)
    enter(queue, a_step(0, 100))  # nothing of what was dropped counts against the bound
    enter(queue, a_step(0, 100))


def test_what_is_held_is_not_being_computed() -> None:
    queue, step = a_queue(), a_step(0)
    enter(queue, step, room=False)
    assert not queue.computing
    queue.next_held()
    assert queue.computing


def test_what_only_fills_a_cache_is_computed_and_owes_nobody_an_answer() -> None:
    queue, step = a_queue(), a_step(0, 5, number=0, hops_left=1)
    enter(queue, step)
    assert (queue.steps, queue.computing) == (0, True)
    queue.done(step)
    assert not queue.computing
    enter(queue, msgspec.structs.replace(step, position=5), room=False)
    assert not queue.computing


def test_so_many_steps_may_wait_and_no_more() -> None:
    queue = a_queue(1000)
    for position in range(MAX_STEPS):
        enter(queue, a_step(position))
    with pytest.raises(Busy, match=f"{MAX_STEPS} steps"):
        queue.accept(a_step(MAX_STEPS))
    queue.done(a_step(0))
    queue.accept(a_step(MAX_STEPS))


def test_their_tokens_are_at_most_two_lengths_of_the_session() -> None:
    queue = a_queue(100)
    for _ in range(2):
        enter(queue, a_step(0, 100))
    with pytest.raises(Busy, match="200 tokens"):
        queue.accept(a_step(0, 1))
    queue.done(a_step(0, 100))
    queue.accept(a_step(0, 1))


def test_no_more_is_sent_again_than_the_session_has_room_for() -> None:
    queue, fill = a_queue(100), a_step(0, 100, number=0, hops_left=1)
    enter(queue, fill)
    with pytest.raises(Busy, match="sent again"):
        queue.accept(a_step(0, 1, number=0, hops_left=1))
    queue.done(fill)
    queue.accept(a_step(0, 1, number=0, hops_left=1))
    queue.accept(a_step(0, 1))  # what the client waits for has a bound of its own


def test_caches_are_filled_before_the_first_step_that_goes_round_the_ring_and_not_after() -> None:
    queue = a_queue()
    enter(queue, a_step(0, 5, number=0, hops_left=0))
    enter(queue, a_step(5, 5, number=0, hops_left=0))
    enter(queue, a_step(10))
    with pytest.raises(RemoteProtocolError, match="goes on here"):
        queue.accept(a_step(10, number=0, hops_left=0))
    assert queue.length == 11


def test_a_step_that_is_refused_leaves_nothing_behind() -> None:
    queue = a_queue()
    enter(queue, a_step(0, 5))
    with pytest.raises(PositionGap):
        queue.accept(a_step(6))
    assert (queue.steps, queue.last_taken) == (1, 1)
    queue.accept(a_step(5))


def test_after_a_step_that_failed_those_behind_it_are_gaps() -> None:
    queue = a_queue()
    enter(queue, a_step(0, 5))
    enter(queue, a_step(5, number=2))
    queue.forget(5)
    with pytest.raises(PositionGap):
        queue.accept(a_step(6, number=3))
    queue.accept(a_step(5, number=2))


def test_it_knows_how_far_it_has_come_and_what_a_step_sent_again_does_not_undo() -> None:
    queue = a_queue()
    enter(queue, a_step(0, number=0, hops_left=0))
    queue.sent(a_step(0, number=0, hops_left=0))
    assert (queue.last_taken, queue.last_sent) == (0, 0)
    enter(queue, a_step(0, number=7))
    assert (queue.last_taken, queue.last_sent) == (7, 0)
    queue.sent(a_step(0, number=7))
    enter(queue, a_step(0, number=5))
    queue.sent(a_step(0, number=5))
    assert (queue.last_taken, queue.last_sent) == (7, 7)


def test_it_knows_how_long_a_step_was_awaited() -> None:
    queue = a_queue(now=10.0)
    assert (queue.since, queue.pause_s) == (10.0, 0.0)
    enter(queue, a_step(0), now=12.5)
    assert (queue.since, queue.pause_s) == (12.5, 2.5)


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes, runs and waits: steps run in the order in which they came, each of them once, but for
    those that were held when a later step went back to before them."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = a_queue(50)
        self.came: deque[Step] = deque()
        self.running: deque[Step] = deque()
        self.number = 0
        self.stepped = False

    @rule(position=st.integers(0, 49), tokens=st.integers(1, 50), room=st.booleans(), fills=st.booleans())
    def come(self, position: int, tokens: int, room: bool, fills: bool) -> None:
        self.number += 1
        left = 0 if fills and not self.stepped else None
        step = a_step(position, min(tokens, 50 - position), self.number, hops_left=left)
        try:
            self.queue.accept(step)
        except (Busy, PositionGap):
            return
        self.stepped = self.stepped or left is None
        while self.came and self.came[-1].position >= position:
            self.came.pop()
        self.came.append(step)
        if self.queue.put(step, b"", 0.0, room=room):
            self._run(step)

    @precondition(lambda self: self.queue.held)
    @rule()
    def make_room(self) -> None:
        self._run(self.queue.next_held()[0])

    @precondition(lambda self: self.running)
    @rule()
    def finish(self) -> None:
        self.queue.done(self.running.popleft())

    def _run(self, step: Step) -> None:
        assert self.came.popleft() is step
        self.running.append(step)

    @invariant()
    def counts_agree(self) -> None:
        here = [*self.running, *self.came]
        assert self.queue.held == len(self.came)
        assert self.queue.computing == bool(self.running)
        assert self.queue.steps == sum(step.hops_left is None for step in here) <= MAX_STEPS
        assert sum(step.tokens for step in here if step.hops_left is None) <= 100
        assert sum(step.tokens for step in here if step.hops_left is not None) <= 50


TestAnyOrder = AnyOrder.TestCase
