"""Messages become fragments and fragments messages, whatever the pipe does to their boundaries."""

from __future__ import annotations

import struct
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.wire.framing import FRAGMENT, FRAGMENT_HEADER, MAX_PARTIAL, Assembler, Outgoing
from shoal.wire.messages import Close, Ping, Step
from shoal.wire.payload import hidden_states

SESSION = bytes(16)


def a_step(rows: int, width: int = 16) -> tuple[Step, bytes]:
    return Step(SESSION, rows, 0, rows, 0, hidden_states("float32", rows, width)), bytes(
        i % 251 for i in range(rows * width * 4)
    )


def fragments(number, message, payload=b""):
    outgoing = Outgoing(number, message, payload)
    out = []
    while len(outgoing):
        out.append(outgoing.next_fragment())
    return out


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=4), st.integers(1, 50_000))
def test_messages_come_out_as_they_went_in(sizes, at_once):
    sent = [a_step(rows) for rows in sizes]
    stream = b"".join(b"".join(fragments(n, m, p)) for n, (m, p) in enumerate(sent))
    assembler, received = Assembler(), []
    at_once = max(at_once, len(stream) // 500)
    for start in range(0, len(stream), at_once):
        received += assembler.feed(stream[start : start + at_once])
    assert received == sent


def test_messages_come_out_of_single_bytes():
    message, payload = a_step(3)
    stream = b"".join(fragments(1, message, payload))
    assembler = Assembler()
    assert [m for i in range(len(stream)) for m in assembler.feed(stream[i : i + 1])] == [(message, payload)]


def test_a_short_message_overtakes_a_long_one():
    long, payload = a_step(50_000)
    pieces = fragments(1, long, payload)
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= FRAGMENT + FRAGMENT_HEADER
    assembler = Assembler()
    assert list(assembler.feed(pieces[0])) == []
    assert list(assembler.feed(fragments(2, Ping(5))[0])) == [(Ping(5), b"")]
    assert [m for piece in pieces[1:] for m in assembler.feed(piece)] == [(long, payload)]


@pytest.mark.parametrize(
    ("what", "data"),
    [
        ("an oversized fragment", struct.pack(">IIB", 1, FRAGMENT + 1, 0)),
        ("an unknown flag", struct.pack(">IIB", 1, 1, 7) + b"x"),
        ("an empty fragment that promises more", struct.pack(">IIB", 1, 0, 1)),
        ("a message without lengths", struct.pack(">IIB", 1, 3, 0) + b"abc"),
        ("a declared payload beyond the bound", struct.pack(">IIBII", 1, 8, 1, 10, 2**32 - 1)),
        ("a declared header beyond the bound", struct.pack(">IIBII", 1, 8, 1, 2**31, 0)),
        ("a message that ends early", struct.pack(">IIBII", 1, 8, 0, 10, 10)),
        ("a message longer than declared", struct.pack(">IIBII", 1, 28, 1, 1, 1) + bytes(20)),
    ],
)
def test_broken_framing_is_refused(what, data):
    with pytest.raises(RemoteProtocolError):
        list(Assembler().feed(data))


def test_declaring_a_length_costs_nothing():
    tracemalloc.start()
    assembler = Assembler()
    for number in range(MAX_PARTIAL):
        list(assembler.feed(struct.pack(">IIBII", number, 8, 1, 100, 200 << 20)))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 1 << 20
    with pytest.raises(RemoteProtocolError, match="begun"):
        list(assembler.feed(struct.pack(">IIBII", 999, 8, 1, 100, 100)))


def test_unfinished_messages_are_bounded_altogether():
    assembler = Assembler(limit=3 * FRAGMENT)
    body = bytes(FRAGMENT - 8)
    with pytest.raises(RemoteProtocolError, match="unfinished"):
        for number in range(4):
            list(assembler.feed(struct.pack(">IIBII", number, FRAGMENT, 1, 10, 1 << 20) + body))


def test_finished_messages_give_their_room_back():
    assembler = Assembler(limit=2 * FRAGMENT)
    message, payload = a_step(2000)
    for number in range(20):
        assert [m for f in fragments(number, message, payload) for m in assembler.feed(f)] == [
            (message, payload)
        ]


@given(st.binary(max_size=400))
def test_any_bytes_are_framed_or_refused(data):
    try:
        list(Assembler().feed(data))
    except RemoteProtocolError:
        return


def test_a_close_is_one_small_fragment():
    assert len(b"".join(fragments(0, Close(SESSION)))) < 60
