"""What travels between two peers, and what is refused before anything acts on it."""

from __future__ import annotations

import pickle
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.testing.byhand import NUMERICS
from shoal.types import Codec
from shoal.wire.fields import NextHop
from shoal.wire.messages import (
    MAX_HEADER,
    Close,
    Failed,
    Hello,
    HopTime,
    Locate,
    Located,
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
from shoal.wire.payload import TensorSpec, declared_bytes, encoded_bytes, hidden_states

SESSION = bytes(range(16))


def a_step(**changes: Any) -> Step:
    return msgspec.structs.replace(Step(SESSION, 1, 0, 3, 1, hidden_states("float32", 3, 8)), **changes)


def an_open(**changes: object) -> Open:
    first = Open(
        SESSION,
        "sha256:ab",
        "fp32",
        0,
        10,
        100,
        0,
        None,
        NextHop("peer", ("/ip4/1.2.3.4/tcp/1",)),
        NUMERICS,
    )
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
        ("tensors", ()),
        ("tensors", hidden_states("float32", -1, 8)),
        ("tensors", hidden_states("bfloat16", 3, 8)),
        ("tensors", hidden_states("object", 3, 8)),
        ("tensors", hidden_states("float32", 0, 8) * 9),
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


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ((TensorSpec("gradient", "float32", (3, 8)),), "a tensor named 'gradient', which is not known here"),
        (hidden_states("float32", 1, 8) + hidden_states("float32", 2, 8), "two tensors of one name"),
        ((TensorSpec("hidden", "float32", (24,)),), "'hidden' has 1 dimensions, not 2"),
        ((TensorSpec("hidden", "float32", (3, 4, 2)),), "'hidden' has 3 dimensions, not 2"),
        (hidden_states("float32", 3, 0), "'hidden' has rows of no elements"),
        (hidden_states("float32", 3, 9), "a Step with 96 bytes of payload where it declares 108"),
    ],
)
def test_a_tensor_that_is_not_what_it_should_be_is_refused_and_named(tensors, says):
    with pytest.raises(RemoteProtocolError, match=says):
        decode(encode(a_step(tensors=tensors)), 3 * 8 * 4)


def test_a_tensor_may_grow_at_its_end_too():
    fields = msgspec.msgpack.decode(encode(a_step()))
    fields[6][0].append("from a later version")
    assert decode(msgspec.msgpack.encode(fields), 3 * 8 * 4) == a_step()


@pytest.mark.parametrize("codec", get_args(Codec))
def test_the_tensors_together_are_the_payload(codec):
    tensors = hidden_states(codec, 3, 100)
    assert declared_bytes(tensors) == encoded_bytes(3, 100, codec)
    assert decode(encode(a_step(tensors=tensors)), encoded_bytes(3, 100, codec)).hidden == tensors[0]


def test_a_result_may_carry_no_rows():
    assert payload_bytes(a_step(tensors=hidden_states("float32", 0, 8))) == 0


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
