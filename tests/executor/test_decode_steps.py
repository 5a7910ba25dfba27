"""What the compiled hop reads and writes is what the wire's rules read and write, or it leaves it alone."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_uint32, c_void_p
from typing import get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.executor.codecs import NUMBER
from shoal.executor.kernels.c_kernels import library
from shoal.types import Codec
from shoal.wire.framing import Assembler, Outgoing
from shoal.wire.messages import HopTime, Ping, Step, encode
from shoal.wire.payload import declared_bytes, hidden_states

pytestmark = pytest.mark.skipif(library() is None, reason="the C kernels are not built")
FRAGMENT_HEADER, LENGTHS = 9, 8
CODECS = get_args(Codec)


class StepInStruct(Structure):
    """``step_in_t`` of native/decode_hop.h."""

    _fields_ = (
        ("message", c_void_p),
        ("payload", c_void_p),
        ("bytes", c_int64),
        ("header", c_int64),
        ("tensors", c_int64),
        ("times", c_int64),
        ("entries_end", c_int64),
        ("n_times", c_int64),
        ("number", c_int64),
        ("position", c_int64),
        ("width", c_int64),
        ("payload_bytes", c_int64),
        ("codec", c_int32),
    )


def native() -> ctypes.CDLL:
    """The kernels, with the functions of native/decode_hop.h that only they call."""
    declared = library()
    declared.read_decode_step.argtypes = [c_char_p, c_int64, POINTER(StepInStruct)]
    step = POINTER(StepInStruct)
    declared.write_decode_step.argtypes = [step, c_uint32, c_int32, c_int64, c_int64, c_void_p]
    declared.write_decode_step.restype = c_int64
    declared.write_next_step.argtypes = [step, c_uint32, c_void_p]
    declared.write_next_step.restype = c_int64
    return declared


edges = [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000, 0xFFFFFFFF, 0x100000000]
numbers = st.one_of(st.sampled_from([*edges, (1 << 63) - 1]), st.integers(0, (1 << 63) - 1))
microseconds = st.one_of(st.sampled_from([*edges, 1 << 42]), st.integers(0, 1 << 42))
times = st.lists(st.builds(HopTime, st.integers(0, 256), microseconds, microseconds), max_size=16)
positions = st.one_of(st.sampled_from([*edges[:8], 1 << 22]), st.integers(0, 1 << 22))


@st.composite
def steps(draw):
    """A step with its payload; most are decode steps, and some nearly so."""
    rows = draw(st.sampled_from([1, 1, 1, 1, 2]))
    tensors = hidden_states(
        draw(st.sampled_from(CODECS)), rows, draw(st.sampled_from([1, 63, 64, 65, 300, 70000]))
    )
    step = Step(
        draw(st.binary(min_size=16, max_size=16)),
        number=draw(numbers),
        position=draw(positions),
        tokens=rows,
        wanted=draw(st.sampled_from([1, 1, 1, 0])),
        tensors=tensors,
        times=tuple(draw(times)),
        hops_left=draw(st.sampled_from([None, None, None, 0, 3])),
        sequence_length=draw(st.sampled_from([0, 0, 0, 200])),
        mutual=draw(st.sampled_from([(), (), (), ((0, 1),)])),
        grids=draw(st.sampled_from([(), (), (), ((0, 2, 3),)])),
    )
    size = declared_bytes(tensors)
    return step, draw(st.binary(min_size=7, max_size=7)) * (size // 7) + bytes(size % 7)


def ordinary(step: Step, payload: bytes) -> bool:
    """Whether it is what the compiled hop is for."""
    return (
        (step.tokens, step.wanted, step.hops_left, step.sequence_length) == (1, 1, None, 0)
        and not (step.mutual or step.grids)
        and len(step.times) <= 14
        and step.hidden.width <= 65510
        and len(payload) + 1024 < 65510
    )


def read(message: bytes) -> StepInStruct | None:
    """What the compiled hop reads of a message without its fragment's header."""
    step = StepInStruct()
    return step if native().read_decode_step(message, len(message), byref(step)) else None


def by_the_rules(message: bytes):
    """What the wire's rules read of it; ``None`` for what breaks them."""
    fragment = (7).to_bytes(4, "big") + len(message).to_bytes(4, "big") + b"\0" + message
    try:
        return list(Assembler().feed(fragment))
    except RemoteProtocolError:
        return None


def agrees(message: bytes) -> bool:
    """Whether what the compiled hop reads is what the rules read. Returns whether it reads it at all."""
    found = read(message)
    if found is None:
        return False
    received = by_the_rules(message)
    assert received is not None
    [(step, payload)] = received
    assert isinstance(step, Step)
    assert ordinary(step, payload) or len(message) + 1024 >= 65510
    assert (found.number, found.position) == (step.number, step.position)
    assert (found.width, found.codec) == (step.hidden.width, NUMBER[step.hidden.codec])
    assert (found.n_times, found.payload_bytes) == (len(step.times), len(payload))
    # In the one form in which we write it, so that what is copied is what would be written.
    assert message[LENGTHS : LENGTHS + found.header] == encode(step)
    return True


def whole(step: Step, payload: bytes) -> bytes:
    header = encode(step)
    return len(header).to_bytes(4, "big") + len(payload).to_bytes(4, "big") + header + payload


@given(steps())
def test_a_decode_step_is_read_and_all_else_left_alone(sent):
    step, payload = sent
    assert agrees(whole(step, payload)) or not ordinary(step, payload)


@given(steps(), st.integers(0, 256), microseconds, microseconds, st.integers(0, (1 << 32) - 1))
def test_it_goes_on_as_the_rules_would_write_it(sent, hop, compute_us, waiting_us, number):
    step, payload = sent
    message = whole(step, payload)
    found = read(message)
    if found is None:
        return
    out = ctypes.create_string_buffer(found.header + 64)
    size = native().write_decode_step(byref(found), number, hop, compute_us, waiting_us, out)
    onward = msgspec.structs.replace(step, times=(*step.times, HopTime(hop, compute_us, waiting_us)))
    assert out.raw[:size] + payload == Outgoing(number, onward, payload).whole()


@given(steps(), st.integers(0, (1 << 32) - 1))
def test_what_follows_a_result_is_written_as_the_rules_would_write_it(sent, number):
    result, payload = sent
    came = whole(result, payload)  # which the kernels point to
    found = read(came)
    if found is None or result.number == (1 << 63) - 1:
        return
    out = ctypes.create_string_buffer(found.header + 64)
    size = native().write_next_step(byref(found), number, out)
    following = Step(result.session, result.number + 1, result.position + 1, 1, 1, result.tensors)
    assert out.raw[:size] + payload == Outgoing(number, following, payload).whole()


@given(steps(), st.data())
@example((Step(bytes(16), 1, 1, 1, 1, hidden_states("int8", 1, 64)), bytes(68)), None)
@example((Step(bytes(16), 1, 1, 1, 1, hidden_states("int6", 1, 64)), bytes(53)), None)
def test_what_is_changed_on_the_way_is_read_as_the_rules_read_it_or_not_at_all(sent, data):
    message = bytearray(whole(*sent))
    for _ in range(data.draw(st.integers(1, 3)) if data else 0):
        # Mostly in the header, where a byte means something.
        at = data.draw(st.integers(0, min(len(message), 200) - 1))
        message[at] = data.draw(st.integers(0, 255))
    if data and data.draw(st.booleans()):
        del message[data.draw(st.integers(0, len(message))) :]
    agrees(bytes(message))


@given(st.binary(max_size=200))
def test_noise_is_left_alone_or_read_as_the_rules_read_it(noise):
    agrees(noise)


def test_a_number_that_could_be_shorter_is_left_to_the_rules():
    step = Step(bytes(16), 5, 1, 1, 1, hidden_states("int8", 1, 64))
    header = encode(step)
    assert header[24:26] == b"\x05\x01"
    longer = header[:24] + b"\xcc\x05" + header[25:]
    message = len(longer).to_bytes(4, "big") + (68).to_bytes(4, "big") + longer + bytes(68)
    assert by_the_rules(message) == [(step, bytes(68))]
    assert read(message) is None
    assert read(whole(step, bytes(68))) is not None


def test_other_messages_are_left_alone():
    header = encode(Ping(3))
    assert read(len(header).to_bytes(4, "big") + bytes(4) + header) is None
