"""Peer wire and hops (docs/hostile.md 1-4 and 8): what a peer may send to a node, and what becomes of it.

Not tested here, for nothing defends against it yet: activations that are scaled or bit-flipped but finite,
and plausible but wrong results of a lying hop (the rest of 8). They need proofs or audits of the computation.
"""

from __future__ import annotations

import math
import os
import pickle
import struct
import tempfile
from pathlib import Path
from typing import get_args

import msgspec
import trio

from shoal.testing.byhand import THEIRS, framed, rows
from shoal.wire.fields import NextHop
from shoal.wire.messages import (
    NEWEST_VERSION,
    Close,
    Failed,
    Hello,
    Locate,
    Message,
    Opened,
    Refused,
    Reroute,
    Step,
    encode,
)
from tests.hostile.conftest import BLOCKS, WIDTH, Attack

MARK = Path(tempfile.gettempdir(), f"shoal-was-unpickled-{os.getpid()}")


class Evil:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


PICKLE = pickle.dumps(Evil())


async def hung_up(attack: Attack, data: bytes) -> None:
    """Send bytes on a pipe of their own, after a hello, and wait until the node hangs up."""
    network = attack.swarm.world.network()
    pipe = await network.open_pipe(attack.swarm.networks[0].address, deadline_s=1)
    await pipe.send_all(framed(encode(Hello(NEWEST_VERSION))) + data)
    with trio.fail_after(25):
        while await pipe.receive_some():
            pass
    await pipe.aclose()
    del attack.swarm.world.peers[network.peer]


# --- 1: pickle bytes in every message ---------------------------------------------------------------------

WORDS = [kind.__struct_config__.tag for kind in get_args(Message)]


async def test_01_pickle_bytes_are_never_run(attack: Attack) -> None:
    await hung_up(attack, PICKLE * 20)
    await hung_up(attack, framed(PICKLE))
    for word in WORDS:
        await hung_up(attack, framed(msgspec.msgpack.encode([word, PICKLE, PICKLE])))
    async with attack.stranger() as peer:
        assert isinstance((await peer.ask(attack.open()))[0], Opened)
        answer, _ = await peer.ask(attack.step(), PICKLE.ljust(len(rows(WIDTH)), b"."))
        assert isinstance(answer, Step | Failed)  # numbers like any others, or no numbers at all
    assert not await trio.Path(MARK).exists()


# --- 2: tensors that lie ----------------------------------------------------------------------------------


LIES = [
    {"rows": 0, "tokens": 1},
    {"rows": 3, "tokens": 2},
    {"width": WIDTH // 2, "tokens": 4, "rows": 4},
    {"tokens": 33, "rows": 33},
    {"position": 31},
    {"position": 4_000_000},
]


async def test_02_lying_shapes_and_positions_are_refused(attack: Attack) -> None:
    async with attack.stranger() as peer:
        await peer.ask(attack.open())
        _, expected = await peer.ask(attack.step(), rows(WIDTH))
        for lie in LIES:
            step = attack.step(number=2, **lie)
            failed, _ = await peer.ask(step, bytes(4 * step.hidden.rows * step.hidden.width))
            assert isinstance(failed, Failed), lie
            assert failed.code in ("remote_protocol", "position_gap"), lie
            assert (await peer.ask(attack.step(number=3), rows(WIDTH)))[1] == expected, lie


RAW = {
    "a count of -1": {3: -1},
    "a count of 2^63": {3: 1 << 63},
    "rows of -1": {6: [["hidden", "float32", [-1, WIDTH]]]},
    "a width of 2^63": {6: [["hidden", "float32", [2, 1 << 63]]]},
    "a width of 0": {6: [["hidden", "float32", [2, 0]]]},
    "one dimension": {6: [["hidden", "float32", [2 * WIDTH]]]},
    "an unknown dtype": {6: [["hidden", "float64", [2, WIDTH]]]},
    "a pickled dtype": {6: [["hidden", "object", [2, WIDTH]]]},
    "a sparse tensor": {6: [["hidden", "sparse_coo", [2, WIDTH]]]},
    "an unknown tensor": {6: [["weights", "float32", [2, WIDTH]]]},
    "a tensor twice": {6: [["hidden", "float32", [1, WIDTH]]] * 2},
    "no tensors": {6: []},
    "a thousand tensors": {6: [["hidden", "float32", [0, WIDTH]]] * 1000},
    "a session of 3 bytes": {1: b"abc"},
    "no tokens": {4: 0},
    "more rows back than there are": {5: 3},
}


async def test_02_lying_dtypes_and_numbers_cost_the_channel(attack: Attack) -> None:
    for changes in RAW.values():
        fields = msgspec.msgpack.decode(encode(attack.step()))
        for index, value in changes.items():
            fields[index] = value
        await hung_up(attack, framed(msgspec.msgpack.encode(fields), rows(WIDTH)))


async def test_02_a_payload_of_another_length_than_its_shape_costs_the_channel(attack: Attack) -> None:
    for length in (0, 1, 511, 513, 2**28 + 1, 2**32 - 1):
        await hung_up(attack, framed(encode(attack.step()), bytes(min(length, 600)), declared=length))


# --- 3: sessions of others --------------------------------------------------------------------------------


async def test_03_a_null_or_foreign_session_reads_and_ends_nothing(attack: Attack) -> None:
    async with attack.stranger() as owner, attack.stranger() as thief:
        assert isinstance((await owner.ask(attack.open(session=THEIRS)))[0], Opened)
        _, expected = await owner.ask(attack.step(session=THEIRS), rows(WIDTH))
        for session in (bytes(16), THEIRS, b"\xff" * 16):
            failed, _ = await thief.ask(attack.step(session=session), rows(WIDTH))
            assert failed.code == "unknown_session"
            assert failed.message == "no such session here, or not of this peer"
            await thief.send(Close(session))
            for question in (Reroute(session, 0, None, None), Locate(session)):
                assert (await thief.ask(question))[0].code == "unknown_session"
        refused, _ = await thief.ask(attack.open(session=THEIRS))
        assert isinstance(refused, Refused)
        assert (await owner.ask(attack.step(session=THEIRS, number=2), rows(WIDTH)))[1] == expected


# --- 4: what is not offered -------------------------------------------------------------------------------


OFFERS = [
    ({"end": BLOCKS + 1}, "not_allowed"),
    ({"start": 16000, "end": 16384}, "not_allowed"),
    ({"format": "int4"}, "not_allowed"),
    ({"digest": "sha256:" + "0" * 64}, "digest_mismatch"),
    ({"digest": "../../etc/passwd"}, "digest_mismatch"),
    ({"tokens": 1 << 22}, "busy"),
    ({"next": NextHop("12D3KooWnobody")}, "channel_closed"),
]


async def test_04_blocks_and_models_that_are_not_served_here_are_refused(attack: Attack) -> None:
    async with attack.stranger() as peer:
        for changes, code in OFFERS:
            refused, _ = await peer.ask(attack.open(**changes))
            assert isinstance(refused, Refused), changes
            assert refused.code == code, changes
            assert refused.retry_after_s > 0


async def test_04_a_message_that_no_node_takes_costs_the_channel(attack: Attack) -> None:
    await hung_up(attack, framed(msgspec.msgpack.encode(["run", "rm -rf"])))
    await hung_up(attack, framed(msgspec.msgpack.encode([])))
    for changes in ({"next": NextHop("")}, {"start": 3, "end": 2}, {"start": 3, "end": 3}):
        await hung_up(attack, framed(encode(attack.open(**changes))))


# --- 8: numbers that are none -----------------------------------------------------------------------------


async def test_08_nan_inf_and_overflow_are_found_where_they_come_up(attack: Attack) -> None:
    async with attack.stranger() as peer:
        await peer.ask(attack.open())
        _, expected = await peer.ask(attack.step(), rows(WIDTH))
        for value in (math.nan, math.inf, -math.inf, 3.4e38):
            answer, back = await peer.ask(attack.step(number=2), rows(WIDTH, value=value))
            if isinstance(answer, Step):  # the norm may bring a large number back to a finite one
                assert math.isfinite(value)
                assert all(map(math.isfinite, struct.unpack(f"<{len(back) // 4}f", back)))
            else:
                assert answer.code == "step_failed"
            assert (await peer.ask(attack.step(number=3), rows(WIDTH)))[1] == expected
