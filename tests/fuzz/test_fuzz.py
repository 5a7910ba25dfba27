"""The fuzz targets on what was found before, on honest input that was changed, and on odd messages."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.errors import RemoteProtocolError
from shoal.net.identity import verify
from shoal.swarm import anti_entropy
from shoal.swarm.announcement import unseal
from shoal.testing.byhand import a_step, fragment, rows
from shoal.training.federated.statements import read_statement
from shoal.wire.framing import FRAGMENT, Assembler
from shoal.wire.messages import decode, encode
from tests.fuzz.honest import HONEST, NOW, SEEDS, S
from tests.fuzz.mutate import changed
from tests.fuzz.targets import SLOW, TARGETS

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.binary(max_size=40),
    st.text(max_size=40),
    st.lists(st.integers(0, 9), max_size=4),
    st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
)


CORPUS = Path(__file__).parent / "corpus"
KEPT = sorted(file for file in CORPUS.glob("*/*") if file.is_file())
LONGEST_S = 0.4
"""For one target here; tests.fuzz.run is for more."""


@pytest.mark.parametrize("file", KEPT, ids=lambda file: f"{file.parent.name}-{file.name}")
def test_what_was_found_once_stays_mended(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_changed_input_is_refused_and_nothing_else(name: str) -> None:
    """Always the same inputs in the same order, and as many of them as there is time for."""
    chance = random.Random(name)
    count = 0
    clock = time.monotonic if name in SLOW else time.thread_time
    began = clock()
    while clock() - began < LONGEST_S:
        TARGETS[name](changed(chance, SEEDS[name]))
        count += 1
    assert count


READ: dict[str, Callable[[bytes], object]] = {
    "header": lambda data: decode(data[:-2], int.from_bytes(data[-2:], "big")),
    "frames": lambda data: list(Assembler(limit=1 << 16).feed(data)),
    "announcement": lambda data: unseal(data, NOW, verify),
    "directory": anti_entropy.read_query,
    "federated": lambda data: read_statement(data, verify),
}


@pytest.mark.parametrize("name", READ)
def test_the_corpus_begins_with_what_is_let_in(name: str) -> None:
    for seed in SEEDS[name]:
        assert READ[name](seed)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_message_with_fields_that_are_off_is_read_or_refused(data: st.DataObject) -> None:
    message = data.draw(st.sampled_from(HONEST))
    fields = msgspec.msgpack.decode(encode(message))
    for index in data.draw(st.lists(st.integers(0, len(fields) - 1), min_size=1, max_size=3)):
        fields[index] = data.draw(ODD)
    if data.draw(st.booleans()):
        fields = fields[: data.draw(st.integers(0, len(fields)))]
    try:
        read = decode(msgspec.msgpack.encode(fields), data.draw(st.sampled_from([0, 512])))
    except RemoteProtocolError:
        return
    assert encode(read)  # what is let in can be sent on


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_frames_with_bits_flipped_never_hold_more_than_came(data: st.DataObject) -> None:
    header = encode(a_step(64, S))
    body = struct.pack(">II", len(header), 512) + header + rows(64)
    cut = data.draw(st.integers(1, len(body) - 1))
    stream = bytearray(fragment(1, body[:cut], more=True) + fragment(1, body[cut:]) + fragment(2, body))
    for _ in range(data.draw(st.integers(0, 4))):
        stream[data.draw(st.integers(0, len(stream) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    TARGETS["frames"](bytes([data.draw(st.integers(0, 255))]) + bytes(stream))
    TARGETS["frames"](bytes(stream))


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, FRAGMENT), st.booleans()), max_size=200))
@settings(max_examples=100, deadline=None)
def test_however_fragments_come_memory_stays_within_the_limit(parts: list[tuple[int, int, bool]]) -> None:
    assembler, limit = Assembler(limit=1 << 18), 1 << 18
    head = struct.pack(">II", 100, 1 << 27)
    try:
        for number, size, more in parts:
            for _ in assembler.feed(fragment(number, (head + bytes(FRAGMENT))[:size], more=more)):
                pass
            assert assembler.held <= limit
    except RemoteProtocolError:
        assert assembler.held <= limit + FRAGMENT
