"""The session's rules: idempotent steps, roll-back, several in flight, results matched by number."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal.errors import LocalProtocolError, PositionGap, RemoteProtocolError
from shoal.testing.byhand import NUMERICS
from shoal.types import Numerics
from shoal.wire.messages import Located, Open, Step, decode, encode
from shoal.wire.payload import hidden_states
from shoal.wire.session import MAX_STRETCH, ClientSession, HopSession, Stuck, where_stuck

SESSION = bytes(16)


def a_hop(tokens: int = 100, numerics: str = NUMERICS) -> HopSession:
    return HopSession(Open(SESSION, "sha256:", "fp32", 0, 1, tokens, 0, None, None, numerics), width=8)


def a_step(position: int, tokens: int = 1, **changes: Any) -> Step:
    hidden = hidden_states("float32", changes.pop("rows", tokens), changes.pop("width", 8))
    return msgspec.structs.replace(Step(SESSION, 1, position, tokens, 0, hidden), **changes)


def test_a_hop_runs_steps_that_continue():
    hop = a_hop()
    hop.accept(a_step(0, 5))
    hop.accept(a_step(5))
    assert hop.length == 6


def test_the_same_step_again_rolls_back_and_runs():
    hop = a_hop()
    hop.accept(a_step(0, 5))
    hop.accept(a_step(5))
    hop.accept(a_step(0, 5))
    assert hop.length == 5


def test_a_step_beyond_the_cache_is_a_gap():
    hop = a_hop()
    hop.accept(a_step(0, 5))
    with pytest.raises(PositionGap):
        hop.accept(a_step(6))
    assert hop.length == 5


@pytest.mark.parametrize("changes", [{"width": 9}, {"rows": 2}])
def test_a_step_of_another_shape_is_refused(changes):
    with pytest.raises(RemoteProtocolError):
        a_hop().accept(a_step(0, 1, **changes))


def test_a_step_in_another_codec_is_refused_but_where_the_session_begins_again():
    hop, other = a_hop(), hidden_states("bfloat16", 1, 8)
    hop.accept(a_step(0, 5))
    with pytest.raises(
        RemoteProtocolError, match="a step in bfloat16 in a session whose rows came in float32"
    ):
        hop.accept(a_step(5, tensors=other))
    hop.accept(a_step(5))
    with pytest.raises(RemoteProtocolError):
        hop.accept(a_step(2, tensors=other))
    assert hop.length == 6
    hop.accept(a_step(0, tensors=other))
    hop.accept(a_step(1, tensors=other))
    assert hop.length == 2


def test_a_step_beyond_the_reservation_is_refused():
    with pytest.raises(RemoteProtocolError, match="in a session of 100"):
        a_hop(100).accept(a_step(0, 101))


def test_a_step_of_a_sequence_beyond_the_reservation_is_refused():
    hop = a_hop(100)
    hop.accept(a_step(0, 10, sequence_length=100))
    with pytest.raises(RemoteProtocolError, match="a sequence of 101"):
        hop.accept(a_step(10, 10, sequence_length=101))


@pytest.mark.parametrize(
    "mutual",
    [((4, 6),), ((6, 11),), ((7, 7),), ((8, 9), (6, 7)), ((6, 8), (7, 9)), ((5, 5 + MAX_STRETCH + 1),)],
)
def test_tokens_see_those_behind_them_only_within_a_step(mutual):
    hop = a_hop(2 * MAX_STRETCH, str(Numerics.parse(NUMERICS).loose))
    hop.accept(a_step(0, 5, mutual=((0, 2), (2, 5))))
    tokens = MAX_STRETCH + 2 if mutual[0][1] > 20 else 5
    with pytest.raises(RemoteProtocolError, match="see others that are not in it, or too many"):
        hop.accept(a_step(5, tokens, mutual=mutual))
    hop.accept(a_step(5, 5, mutual=((5, 10),)))


@pytest.mark.parametrize(
    "grids", [((10, 1, 1),), ((2, 9, 11),), ((2, 2, 2), (5, 1, 1)), ((6, 1, 1), (2, 1, 1))]
)
def test_pictures_follow_one_another_and_begin_before_a_steps_end(grids):
    hop = a_hop(100, str(Numerics.parse(NUMERICS).loose))
    hop.accept(a_step(0, 5, grids=((2, 2, 2),)))
    with pytest.raises(RemoteProtocolError, match="pictures that are not before its end, or have no room"):
        hop.accept(a_step(5, 5, grids=grids))
    hop.accept(a_step(5, 5, grids=((2, 2, 2), (6, 4, 5))))


@pytest.mark.parametrize("grid", [(0, 0, 1), (0, 1, 0), (-1, 1, 1), (0, 1 << 23, 1), (0, 1)])
def test_a_picture_has_rows_and_a_place(grid):
    with pytest.raises(RemoteProtocolError):
        decode(encode(a_step(0, 5, grids=(grid,))), 0)


def test_they_do_not_in_a_session_that_promises_the_same_bits():
    hop = a_hop(numerics=str(Numerics("int8", "auto", "rows")))
    with pytest.raises(RemoteProtocolError, match="in a session that promises the same bits"):
        hop.accept(a_step(0, 5, mutual=((0, 2),)))
    with pytest.raises(RemoteProtocolError, match="in a session that promises the same bits"):
        hop.accept(a_step(0, 5, grids=((0, 2, 2),)))
    hop.accept(a_step(0, 5))
    assert hop.length == 5


def test_a_client_counts_what_is_in_flight():
    client = ClientSession(10, in_flight=2)
    client.issue(3, 0)
    client.issue(1, 1)
    assert (client.length, client.in_flight) == (4, 2)
    with pytest.raises(LocalProtocolError, match="in flight"):
        client.issue(1, 1)


def test_a_client_never_sends_more_than_it_reserved():
    client = ClientSession(10)
    with pytest.raises(LocalProtocolError, match="session of 10"):
        client.issue(11, 0)


def answer(issued, **changes: Any) -> Step:
    hidden = hidden_states("float32", changes.pop("rows", issued.wanted), 8)
    step = Step(SESSION, issued.number, issued.position, issued.tokens, issued.wanted, hidden)
    return msgspec.structs.replace(step, **changes)


def test_a_result_of_a_step_given_up_is_dropped():
    client = ClientSession(10)
    kept, dropped = client.issue(3, 0), client.issue(2, 2)
    client.roll_back(3)
    assert client.returned(answer(kept)) == kept
    assert client.returned(answer(dropped)) is None
    assert client.length == 3


def test_results_come_in_the_order_of_their_steps():
    client = ClientSession(10)
    first, second = client.issue(3, 1), client.issue(2, 1)
    with pytest.raises(RemoteProtocolError, match="step 2 before that for 1"):
        client.returned(answer(second))
    assert [client.returned(answer(first)), client.returned(answer(second))] == [first, second]


def test_a_failed_step_takes_those_behind_it_along():
    client = ClientSession(10)
    client.issue(3, 0)
    failed = client.issue(2, 0)
    client.issue(2, 1)
    assert client.failed(failed.number)
    assert (client.length, client.in_flight) == (3, 1)
    assert not client.failed(failed.number)


@pytest.mark.parametrize("changes", [{"number": 99}, {"number": 0}, {"rows": 2}, {"position": 1}])
def test_a_result_that_answers_nothing_is_refused(changes):
    client = ClientSession(10)
    issued = client.issue(3, 1)
    with pytest.raises(RemoteProtocolError):
        client.returned(answer(issued, **changes))


class ClientAndHop(RuleBasedStateMachine):
    """Whatever a client does, an honest hop that gets its steps in order agrees with it on the length."""

    def __init__(self):
        super().__init__()
        self.client = ClientSession(50, in_flight=8)
        self.hop = a_hop(50)
        self.wire: list = []

    @precondition(lambda self: self.client.in_flight < 8 and self.client.length < 50)
    @rule(data=st.data())
    def send(self, data):
        tokens = data.draw(st.integers(1, 50 - self.client.length))
        self.wire.append(self.client.issue(tokens, data.draw(st.integers(0, tokens))))

    @precondition(lambda self: self.wire)
    @rule()
    def arrive(self):
        issued = self.wire.pop(0)
        step = a_step(issued.position, issued.tokens)
        self.hop.accept(step)
        returned = self.client.returned(answer(issued))
        assert returned in (issued, None)

    @rule(data=st.data())
    def roll_back(self, data):
        self.client.roll_back(data.draw(st.integers(0, self.client.length)))

    @invariant()
    def agree(self):
        # A roll-back reaches the hop with the next step, so that the hop may be ahead but never behind.
        if not self.wire:
            assert self.hop.length >= self.client.length


TestClientAndHop = ClientAndHop.TestCase


@pytest.mark.parametrize(
    ("found", "stuck"),
    [
        ([(9, 9), (9, 8), (8, 8)], Stuck((1,), at_work=True)),  # the second has it
        ([(9, 9), (8, 8), (8, 8)], Stuck((0, 1))),  # it was sent, and it never came
        ([(1 << 40, 1 << 40), (0, 0), (0, 0)], Stuck((0, 1))),
        ([(8, 8), (8, 8), (8, 8)], Stuck((0,))),  # we sent it
        ([(9, 9), None, (9, 9)], Stuck((1,))),  # the second says nothing
        ([(9, 9), (9, 9), (9, 9)], Stuck((2,))),  # all say that they sent it
    ],
)
def test_what_a_hop_says_it_sent_counts_when_the_next_says_it_came(found, stuck):
    located = [Located(b"s" * 16, *counts) if counts else None for counts in found]
    assert where_stuck(located, 9) == stuck
