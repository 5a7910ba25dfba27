"""What travels between two peers, and what is refused before anything acts on it."""

from __future__ import annotations

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.wire.messages import (
    MAX_HEADER,
    Close,
    Failed,
    Hello,
    HopTime,
    Locate,
    Located,
    NextHop,
    Open,
    Opened,
    Ping,
    Pong,
    Refused,
    Reroute,
    Rerouted,
    Step,
    decode,
    encode,
    payload_bytes,
)

SESSION = bytes(range(16))


def a_step(**changes: object) -> Step:
    return msgspec.structs.replace(Step(SESSION, 1, 0, 3, 1, "float32", 3, 8), **changes)


def an_open(**changes: object) -> Open:
    first = Open(SESSION, "sha256:ab", "fp32", 0, 10, 100, 0, None, NextHop("peer", ("/ip4/1.2.3.4/tcp/1",)))
    return msgspec.structs.replace(first, **changes)


@pytest.mark.parametrize(
    "message",
    [
        Hello(1, "shoal/0.1"),
        an_open(),
        an_open(next=None, previous="another"),
        Opened(SESSION, 7),
        Refused(SESSION, "busy", "no room", 2.5, 12),
        a_step(),
        a_step(times=(HopTime(0, 12, 3), HopTime(1, 4, 5))),
        Failed(SESSION, None, 2, "step_failed", "why"),
        Failed(SESSION, None, 2, "channel_closed", "why", gone="another"),
        a_step(hops_left=0),
        Reroute(SESSION, 1, "before", NextHop("after"), 12, 2),
        Reroute(SESSION, 0, None, None),
        Rerouted(SESSION, False),
        Locate(SESSION),
        Located(SESSION, 9, 8),
        Close(SESSION),
        Ping(9),
        Pong(9),
    ],
)
def test_every_message_survives_the_wire(message):
    assert decode(encode(message), payload_bytes(message)) == message


def test_a_message_may_grow_at_its_end():
    tag, *fields = msgspec.msgpack.decode(encode(Opened(SESSION, 7)))
    assert decode(msgspec.msgpack.encode([tag, *fields, "from a later version"]), 0) == Opened(SESSION, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tokens", 0),
        ("tokens", -1),
        ("tokens", 2**63),
        ("position", -1),
        ("position", 2**63),
        ("wanted", 4),
        ("width", 0),
        ("rows", -1),
        ("codec", "bfloat16"),
        ("codec", "object"),
        ("session", b"short"),
        ("session", b""),
        ("number", -1),
        ("times", (HopTime(0, -1, 0),)),
    ],
)
def test_a_lying_step_is_refused(field, value):
    lying = a_step(**{field: value})
    with pytest.raises(RemoteProtocolError):
        decode(encode(lying), 3 * 8 * 4)


@pytest.mark.parametrize("size", [0, 95, 97, 2**40])
def test_a_payload_of_another_size_than_declared_is_refused(size):
    with pytest.raises(RemoteProtocolError, match="payload"):
        decode(encode(a_step()), size)


def test_an_empty_span_is_refused():
    with pytest.raises(RemoteProtocolError, match="empty span"):
        decode(encode(an_open(start=5, end=5)), 0)


def test_pickle_is_not_a_message():
    with pytest.raises(RemoteProtocolError):
        decode(pickle.dumps({"session": SESSION}), 0)


def test_a_header_beyond_its_bound_is_refused_unread():
    with pytest.raises(RemoteProtocolError, match="header"):
        decode(bytes(MAX_HEADER + 1), 0)


def test_text_that_is_no_utf8_is_refused():
    data = encode(Refused(SESSION, "busy", "xx", 1.0, 0)).replace(b"xx", b"\xff\xfe")
    with pytest.raises(RemoteProtocolError):
        decode(data, 0)


def test_deep_nesting_is_refused():
    with pytest.raises(RemoteProtocolError):
        decode(b"\x91" * 20_000 + b"\xc0", 0)


@given(st.binary(max_size=300), st.integers(0, 1 << 33))
def test_any_bytes_are_a_message_or_refused(data, size):
    try:
        message = decode(data, size)
    except RemoteProtocolError:
        return
    assert payload_bytes(message) == size
