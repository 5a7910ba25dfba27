"""Decode steps from bytes to bytes, in one call of the kernels (native/decode_hop.h).

At a hop they go through its blocks and on; at a client they come back, and the step of the likeliest token
goes round next (native/decode_ends.h).

A session has a *seat* while it is open. Its next step may run here once the seat is *ready*: then the bytes
that a peer has sent are read, computed and written again without Python between. What is not one token of a
session that goes on where its cache ends is left alone, and goes the ordinary way from its first byte.
"""

from __future__ import annotations

import ctypes
from ctypes import addressof, pointer
from dataclasses import dataclass

from shoal.executor.arrays import address, empty
from shoal.executor.codecs import NUMBER
from shoal.executor.kernels.c_kernels import ThreadTeam
from shoal.executor.kernels.structs import (
    MOST_STEPS,
    DecodeHopStruct,
    EndsStruct,
    SeatStruct,
    SpanStruct,
)
from shoal.executor.pages import PAGE, Pages
from shoal.types import Codec, SessionId

SEATS = 64
"""Sessions whose decode steps may run here; those that find no seat go the ordinary way."""
MOST_PAYLOAD = 16 << 10
"""Bytes of a step's hidden states; longer ones take so long to compute that the way hardly matters."""
MOST_BYTES = MOST_STEPS * (MOST_PAYLOAD + 512)
_CODECS: dict[int, Codec] = {number: codec for codec, number in NUMBER.items()}


@dataclass(frozen=True, slots=True)
class RanStep:
    """A decode step that has run."""

    session: SessionId
    header: memoryview
    """As it came."""
    message: bytes
    """As it goes on, whole: a fragment."""
    came: bytes
    """The hidden states that came."""
    payload: bytes
    """Those that go on."""
    codec: Codec
    token: int
    """Which was chosen at a client, and goes on."""


@dataclass(frozen=True, slots=True)
class RanTimes:
    """When steps that ran together did, on the clock of ``time.perf_counter``."""

    asked: float
    began: float
    ended: float
    compute_us: int
    """What the steps say that the forward took."""
    waiting_us: int
    """And the rest of their time here."""


@dataclass(frozen=True, slots=True)
class AwaitedResult:
    """The one result that a client waits for, and what the step after it needs."""

    step: int
    """The number of the step that it answers."""
    position: int
    """Of that step."""
    limit: int
    """Tokens that the session may have before it has no room for another step."""
    channel: int
    """The number of the channel that it comes over."""
    codec: Codec
    message: int
    """The number that the message of the next step has on its pipe."""


class DecodeSteps:
    """Runs the decode steps of one span, or of a model's ends. For one thread at a time, which no other uses
    the team beside.

    Args:
        team: the threads that compute.
        through: the blocks, with their KV's memory; or the ends.
        width: elements of a token's hidden states.
        held: has what ``through`` points to.
    """

    def __init__(self, team: ThreadTeam, through: SpanStruct | EndsStruct, width: int, held: object) -> None:
        self._team, self._through, self._held = team, through, held  # the kernels read these by address
        self._hidden = empty((MOST_STEPS, width))
        self._out = ctypes.create_string_buffer(MOST_BYTES)
        self._seats = (SeatStruct * SEATS)()
        self._free = list(range(SEATS - 1, -1, -1))
        self._taken: dict[int, SessionId] = {}
        self._run = team.library.decode_steps
        self._struct = DecodeHopStruct(
            team=team.handle,
            **{"span" if isinstance(through, SpanStruct) else "ends": pointer(through)},
            seats=self._seats,
            width=width,
            hidden=address(self._hidden),
            out=addressof(self._out),
            out_bytes=MOST_BYTES,
            most_payload=MOST_PAYLOAD,
        )
        self._at = addressof(self._struct)

    def take_seat(self, session: SessionId) -> int | None:
        """A seat for a session; ``None`` where all are taken."""
        if not self._free:
            return None
        seat = self._free.pop()
        self._taken[seat] = session
        self._seats[seat] = SeatStruct(session=(ctypes.c_uint8 * 16).from_buffer_copy(session))
        self._struct.n_seats = max(self._taken) + 1
        return seat

    def leave_seat(self, seat: int) -> None:
        """The session is over."""
        self._seats[seat] = SeatStruct()  # not ready, whatever session it may seem to be of
        del self._taken[seat]
        self._free.append(seat)
        self._struct.n_seats = max(self._taken, default=-1) + 1

    def prepare(
        self,
        seat: int,
        *,
        channel: int,
        length: int,
        limit: int,
        pages: Pages,
        blocks: range,
        codec: Codec,
        hop: int,
        number: int,
        adapter: int = 0,
    ) -> None:
        """Let the session's next step run here, if it comes over ``channel``.

        Args:
            length: tokens that are cached.
            limit: tokens that it may grow to; with what it has pages for, no further than these.
            pages: its KV, which must stay as it is until the step has run or is held.
            blocks: that it uses, counted from the span's first.
            codec: in which the session's steps come; a step in another is left alone.
            hop: its place in the route.
            number: of the message that goes on, on its pipe.
            adapter: as of a ``KvState``.
        """
        entry = self._seats[seat]
        entry.channel, entry.length, entry.number, entry.hop = channel, length, number, hop
        entry.limit = min(limit, PAGE * len(pages.numbers))
        entry.pages, _ = pages.numbers.buffer_info()
        entry.start, entry.end = blocks.start, blocks.stop
        entry.codec, entry.adapter = NUMBER[codec], adapter
        entry.ready = 1

    def prepare_result(self, seat: int, result: AwaitedResult) -> None:
        """The same at a client: let the result be answered here."""
        entry = self._seats[seat]
        entry.channel, entry.length, entry.limit = result.channel, result.position, result.limit
        entry.awaited, entry.number = result.step, result.message
        entry.codec = NUMBER[result.codec]
        entry.ready = 1

    def note_rhythm(self, seat: int, left: float, away: float) -> None:
        """When the session's last step was done, and how long it is usually away; 0 if that is not known."""
        self._seats[seat].left, self._seats[seat].away = left, away

    def hold(self, seat: int) -> None:
        """The session's steps go the ordinary way until it is prepared again."""
        self._seats[seat].ready = 0

    def run(self, channel: int, data: bytes, wait_s: float) -> tuple[list[RanStep], RanTimes] | None:
        """Run the steps that ``data`` consists of, if all of them may run here; else do nothing.

        The seats of those that ran must be prepared again.

        Args:
            channel: over which it came.
            wait_s: for so long, a forward waits for others that are nearly here: where there are such, this
                is left to who can wait.
        """
        struct = self._struct
        struct.wait_s = wait_s
        count = self._run(self._at, channel, data, len(data))
        if not count:
            return None
        came, out = memoryview(data), memoryview(self._out)
        steps: list[RanStep] = []
        for ran in struct.ran[:count]:
            self._seats[ran.seat].ready = 0
            message = bytes(out[ran.out_at : ran.out_at + ran.out])
            steps.append(
                RanStep(
                    self._taken[ran.seat],
                    came[ran.header_at : ran.header_at + ran.header],
                    message,
                    data[ran.header_at + ran.header : ran.header_at + ran.header + ran.payload],
                    message[-ran.payload :],
                    _CODECS[ran.codec],
                    ran.token,
                )
            )
        times = RanTimes(
            asked=struct.asked,
            began=struct.began,
            ended=struct.ended,
            compute_us=struct.compute_us,
            waiting_us=struct.waiting_us,
        )
        return steps, times
