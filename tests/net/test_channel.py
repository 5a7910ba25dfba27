"""Messages between two peers over one pipe: how they overtake each other, and how a channel ends.

Time is the manual clock's: it jumps when nothing else is left to do.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from shoal.errors import ChannelClosed, OutdatedPeer
from shoal.net import outbox
from shoal.net.channel import HELLO_WITHIN_S, SENT_WITHIN_S, Channel
from shoal.net.link_speed import ENOUGH
from shoal.net.moving.liveness import DEAD_AFTER_S, PING_EVERY_S
from shoal.net.outbox import CONTROL_LIMIT, RECORD
from shoal.testing.memory import MemoryPipe, pipe_pair
from shoal.types import PeerId
from shoal.wire.framing import Assembler, Outgoing
from shoal.wire.messages import (
    NEWEST_VERSION,
    NONCE_BYTES,
    OLDEST_VERSION,
    Attest,
    Close,
    Hello,
    Message,
    Ping,
    Pong,
    Step,
)
from shoal.wire.payload import hidden_states

A, B = PeerId("A"), PeerId("B")
ONE, TWO = b"1" * 16, b"2" * 16
HELLO = Hello(NEWEST_VERSION)


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)


def step(session: bytes, size: int) -> tuple[Step, bytes]:
    """A step whose payload is about ``size`` bytes long."""
    rows = max(1, size // 4096)
    return Step(session, 1, 0, rows, 0, hidden_states("float32", rows, 1024)), bytes(rows * 4096)


class Inbox:
    """What one end has taken, in order."""

    def __init__(self) -> None:
        self.taken: list[tuple[Message, bytes]] = []

    async def take(self, _: Channel, message: Message, payload: bytes) -> None:
        self.taken.append((message, payload))


@asynccontextmanager
async def channels(bytes_s: float = math.inf) -> AsyncGenerator[tuple[Channel, Inbox, Channel, Inbox]]:
    """Two running ends that have said hello."""
    ends = [Channel(pipe) for pipe in pipe_pair(A, B, bytes_s=bytes_s)]
    boxes = [Inbox(), Inbox()]
    async with trio.open_nursery() as nursery:
        for end, box in zip(ends, boxes, strict=True):
            nursery.start_soon(end.run, box.take)
        for end in ends:
            await end.wait_ready(5)
        yield ends[0], boxes[0], ends[1], boxes[1]
        for end in ends:
            end.close()


class Rogue:
    """The other end of a channel, in the test's own hands."""

    def __init__(self, pipe: MemoryPipe, channel: Channel, box: Inbox) -> None:
        self.pipe = pipe
        self.channel = channel
        self.box = box

    async def say(self, *messages: Message) -> None:
        """Send messages that need no payload."""
        for number, message in enumerate(messages):
            await self.pipe.send_all(Outgoing(number, message).next_fragment())

    async def hear(self) -> list[Message]:
        """Everything until the channel hangs up."""
        assembler, heard = Assembler(), list[Message]()
        while data := await self.pipe.receive_some():
            heard += [message for message, _ in assembler.feed(data)]
        return heard

    async def drain(self) -> None:
        """Read, and say nothing."""
        while await self.pipe.receive_some():
            pass

    async def ended(self, within_s: float) -> float:
        """When the channel has closed, in seconds from now."""
        start = trio.current_time()
        with trio.fail_after(within_s):
            while not self.channel.closed:  # noqa: ASYNC110
                await trio.sleep(0.1)
        return trio.current_time() - start


@asynccontextmanager
async def rogue() -> AsyncGenerator[Rogue]:
    """A running channel whose peer does what the test does. In the end its pipe must be closed."""
    ours, theirs = pipe_pair(A, B)
    channel, box = Channel(ours), Inbox()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, box.take)
        yield Rogue(theirs, channel, box)
        channel.close()
    with pytest.raises(ChannelClosed):
        await ours.send_all(b"x")


# --- an honest peer --------------------------------------------------------------------------------------


async def test_messages_arrive_as_they_were_sent(autojump_clock: MockClock):
    async with channels() as (a, _, b, at_b):
        sent = [step(ONE, 4096), (Close(ONE), b""), step(ONE, 300_000)]
        for message, payload in sent:
            await a.send(message, payload)
        await trio.sleep(1)
        assert at_b.taken == sent
        assert (a.peer, b.peer, a.carrier) == (B, A, "memory")


async def test_a_short_message_overtakes_the_long_one_of_another_session(autojump_clock: MockClock):
    async with channels() as (a, _, __, at_b):
        long, short = step(ONE, 8 << 20), step(TWO, 4096)
        await a.send(*long)
        await a.send(*short)
        await trio.sleep(1)
        assert at_b.taken == [short, long]


async def test_messages_of_one_session_never_overtake_each_other(autojump_clock: MockClock):
    async with channels() as (a, _, __, at_b):
        long, short = step(ONE, 1 << 20), step(ONE, 4096)
        await a.send(*long)
        await a.send(*short)
        await trio.sleep(1)
        assert at_b.taken == [long, short]


class Eager(MemoryPipe):
    """A pipe that takes what it is given at once, for as long as it is whole."""

    def __init__(self, pipe: MemoryPipe) -> None:
        super().__init__(pipe.peer, pipe._send, pipe._receive)
        self.records: list[bytes] = []
        self.broken = False

    def send_now(self, data: bytes) -> bool:
        if self.broken:
            raise ChannelClosed("the pipe broke")
        self.records.append(data)
        self._send.send_nowait(data)
        return True


@asynccontextmanager
async def eager() -> AsyncGenerator[tuple[Channel, Eager, Inbox]]:
    """One end whose pipe takes messages at once, its pipe, and what arrives at the other."""
    ours, theirs = pipe_pair(A, B)
    pipe, box = Eager(ours), Inbox()
    a, b = Channel(pipe), Channel(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.run, Inbox().take)
        nursery.start_soon(b.run, box.take)
        await a.wait_ready(5)
        pipe.records.clear()
        yield a, pipe, box
        a.close()


async def test_messages_that_are_gathered_leave_in_one_piece_and_in_their_order(autojump_clock: MockClock):
    async with eager() as (a, pipe, box):
        sent = [step(ONE, 4096), step(TWO, 4096), (Close(ONE), b"")]
        first = [a.gather(message, payload) for message, payload in sent]
        assert first == [True, False, False]
        assert not pipe.records
        a.flush()
        assert len(pipe.records) == 1
        await trio.sleep(0.1)
        assert box.taken == sent


async def test_what_is_gathered_goes_ahead_of_what_is_sent_meanwhile(autojump_clock: MockClock):
    async with eager() as (a, _, box):
        sent = [step(ONE, 4096), step(TWO, 4096), (Close(ONE), b""), step(TWO, 300_000)]
        a.gather(*sent[0])
        a.send_now(*sent[1])
        a.gather(*sent[2])
        assert a.gather(*sent[3]) is False  # it is long: whoever sends it does not wait for others
        a.flush()
        await trio.sleep(0.1)
        assert box.taken == sent


async def test_more_than_a_record_is_gathered_and_none_is_longer_than_pipes_take(autojump_clock: MockClock):
    async with eager() as (a, pipe, box):
        sent = [step(ONE if i % 2 else TWO, 24_000) for i in range(9)]
        for message, payload in sent:
            a.gather(message, payload)
        a.flush()
        assert 1 < len(pipe.records) < len(sent)
        assert max(len(record) for record in pipe.records) <= RECORD
        await trio.sleep(0.1)
        assert box.taken == sent


async def test_what_a_pipe_does_not_take_at_once_is_queued(autojump_clock: MockClock):
    async with channels() as (a, _, __, at_b):
        sent = [step(ONE, 4096), step(TWO, 4096)]
        for message, payload in sent:
            a.gather(message, payload)
        a.flush()
        await trio.sleep(0.1)
        assert at_b.taken == sent


async def test_a_pipe_that_breaks_under_what_was_gathered_closes_the_channel(autojump_clock: MockClock):
    async with eager() as (a, pipe, _):
        a.gather(*step(ONE, 4096))
        pipe.broken = True
        await trio.to_thread.run_sync(a.flush)
        await trio.sleep(0.1)
        assert a.closed
        assert a.reason == "the pipe broke"
        with pytest.raises(ChannelClosed):
            a.gather(*step(ONE, 4096))


class OneWriter(Eager):
    """A pipe that may go on elsewhere, and notes when a writer begins and ends."""

    def __init__(self, pipe: MemoryPipe) -> None:
        super().__init__(pipe)
        self.slow = False
        """Whether threads take their time."""
        self.begun = threading.Event()
        self.noted: list[str] = []

    def send_now(self, data: bytes) -> bool:
        if self.slow:
            self.noted.append("a thread begins")
            self.begun.set()
            time.sleep(0.1)
            self.noted.append("a thread ends")
        return True

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.noted.append("the loop begins")
        await trio.sleep(0.1)
        self.noted.append("the loop ends")


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "while"])
async def test_no_thread_writes_while_a_channel_says_goodbye(meanwhile: bool):
    """Two writers of a pipe at once would seal two records alike, or one in the middle of another."""
    ours, theirs = pipe_pair(A, B)
    pipe = OneWriter(ours)
    channel = Channel(pipe, name=bytes(16))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.run, Inbox().take)
        await theirs.send_all(Outgoing(0, Hello(NEWEST_VERSION, "", bytes(16))).next_fragment())
        await channel.wait_ready(5)
        await trio.testing.wait_all_tasks_blocked()  # the first ping has gone
        channel.gather(*step(ONE, 4096))
        pipe.slow = True
        if not meanwhile:
            nursery.start_soon(trio.to_thread.run_sync, channel.flush)
            await trio.to_thread.run_sync(pipe.begun.wait)
        channel.close()
        await trio.sleep(0.05)
        if meanwhile:
            await trio.to_thread.run_sync(channel.flush)
    before = [] if meanwhile else ["a thread begins", "a thread ends"]
    assert pipe.noted == [*before, "the loop begins", "the loop ends"]


async def test_a_quiet_channel_stays_open_and_knows_its_round_trip(autojump_clock: MockClock):
    async with channels() as (a, _, b, __):
        await trio.sleep(20 * DEAD_AFTER_S)
        assert not a.closed
        assert not b.closed
        assert a.rtt_s is not None
        assert 0 <= a.rtt_s < 0.1


async def test_whoever_closes_both_ends_are_closed(autojump_clock: MockClock):
    async with channels() as (a, _, b, __):
        await trio.sleep(0.1)  # until b has nothing to send: else it may find the pipe gone by its first ping
        a.close("enough")
        await trio.sleep(0.1)
        assert b.closed
        assert (a.reason, b.reason) == ("enough", "the peer hung up")
        for end in (a, b):
            with pytest.raises(ChannelClosed):
                await end.send(Close(ONE))
            with pytest.raises(ChannelClosed):
                await end.wait_ready(1)
        a.close("again")
        assert a.reason == "enough"


async def test_who_sends_faster_than_the_pipe_waits_and_a_close_wakes_him(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(outbox, "QUEUED_LIMIT", 1 << 20)
    async with rogue() as peer:
        failures: list[ChannelClosed] = []
        sent = 0

        async def send() -> None:
            nonlocal sent
            try:
                while True:
                    await peer.channel.send(*step(ONE, 1 << 18))
                    sent += 1
            except ChannelClosed as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.sleep(1)
            assert sent <= 4 + 5 + 5  # the limit, the message over it, and what lies in the pipe
            peer.channel.close("enough")
        assert len(failures) == 1


# --- a peer that breaks the rules ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        (Hello(OLDEST_VERSION - 1), "the peer's release is too old"),
        (Hello(NEWEST_VERSION + 1), "this machine's release is too old"),
    ],
)
async def test_a_release_too_far_away_is_refused_by_name(autojump_clock: MockClock, hello: Hello, why: str):
    async with rogue() as peer:
        await peer.say(hello)
        with pytest.raises(ChannelClosed, match=why):
            await peer.channel.wait_ready(1)


async def test_a_peer_of_an_older_release_is_not_sent_what_it_does_not_know(autojump_clock: MockClock):
    async with rogue() as peer:
        await peer.say(Hello(OLDEST_VERSION))
        await peer.channel.wait_ready(1)
        with pytest.raises(OutdatedPeer, match="does not know what is asked of it \\(Attest\\)"):
            await peer.channel.send(Attest(1, bytes(NONCE_BYTES)))
        await peer.channel.send(Close(ONE))
        await trio.sleep(0.1)
        peer.channel.close()
        heard = [type(message) for message in await peer.hear()]
    assert Close in heard and Attest not in heard


async def test_nothing_is_taken_before_the_hello(autojump_clock: MockClock):
    async with rogue() as peer:
        await peer.say(Close(ONE), HELLO)
        with pytest.raises(ChannelClosed, match="before the peer's hello"):
            await peer.channel.wait_ready(1)
        assert peer.box.taken == []


async def test_a_peer_without_a_hello_is_not_waited_for(autojump_clock: MockClock):
    async with rogue() as peer, trio.open_nursery() as nursery:
        nursery.start_soon(peer.drain)
        assert await peer.ended(20) <= HELLO_WITHIN_S + 0.2


async def test_the_caller_need_not_wait_so_long(autojump_clock: MockClock):
    async with rogue() as peer:
        start = trio.current_time()
        with pytest.raises(ChannelClosed):
            await peer.channel.wait_ready(1)
        assert trio.current_time() - start == pytest.approx(1)
        assert peer.channel.closed


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 64, b"GET / HTTP/1.1\r\n\r\n", b"\x00\x00\x00\x00\x00\x00\x00\x09\x00" + b"\xff" * 9],
)
async def test_bytes_that_are_no_messages_close_the_channel(autojump_clock: MockClock, garbage: bytes):
    async with rogue() as peer:
        await peer.say(HELLO)
        await peer.pipe.send_all(garbage)
        assert await peer.ended(1) < 1
        assert peer.box.taken == []


async def test_a_peer_that_falls_silent_is_given_up(autojump_clock: MockClock):
    async with rogue() as peer, trio.open_nursery() as nursery:
        await peer.say(HELLO)
        nursery.start_soon(peer.drain)
        waited = await peer.ended(60)
        assert DEAD_AFTER_S <= waited <= DEAD_AFTER_S + PING_EVERY_S + 0.2
        assert "nothing heard" in peer.channel.reason


async def test_half_a_message_for_ever_is_silence_too(autojump_clock: MockClock):
    async with rogue() as peer, trio.open_nursery() as nursery:
        await peer.say(HELLO)
        message, payload = step(ONE, 1 << 20)
        await peer.pipe.send_all(Outgoing(9, message, payload).next_fragment())
        nursery.start_soon(peer.drain)
        assert await peer.ended(60) <= DEAD_AFTER_S + PING_EVERY_S + 0.2
        assert peer.box.taken == []


async def test_a_peer_that_never_reads_is_given_up(autojump_clock: MockClock):
    async with rogue() as peer, trio.open_nursery() as nursery:
        await peer.say(HELLO)

        async def talk() -> None:
            while not peer.channel.closed:
                await peer.pipe.send_all(Outgoing(0, HELLO).next_fragment())
                await trio.sleep(1)

        nursery.start_soon(talk)
        await trio.sleep(0.1)
        await peer.channel.send(*step(ONE, 4 << 20))
        waited = await peer.ended(60)
        assert waited <= SENT_WITHIN_S + 0.2
        assert "has not read" in peer.channel.reason
        nursery.cancel_scope.cancel()


async def test_an_error_of_ours_ends_the_channel_that_led_to_it_and_nothing_else(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
):
    ours, theirs = pipe_pair(A, B)

    async def fail(channel: Channel, message: Message, payload: bytes) -> None:
        raise KeyError("unforeseen")

    async with trio.open_nursery() as nursery:
        channel = Channel(ours)
        nursery.start_soon(channel.run, fail)
        for number, message in enumerate((HELLO, Close(ONE))):
            await theirs.send_all(Outgoing(number, message).next_fragment())
        with trio.fail_after(25):
            while await theirs.receive_some():
                pass
        assert channel.reason == "an error of ours"
    assert "unforeseen" in caplog.text


async def test_a_flood_of_pings_by_a_peer_that_never_reads_is_bounded(autojump_clock: MockClock):
    async with rogue() as peer:
        await peer.say(HELLO)
        with pytest.raises(ChannelClosed):
            for number in range(100 * CONTROL_LIMIT):
                await peer.say(Ping(number))
        assert peer.channel.closed
        assert sum(map(len, peer.channel._outbox._queues.values())) <= CONTROL_LIMIT
        assert "does not read" in peer.channel.reason


async def test_pings_of_a_peer_that_reads_are_all_answered(autojump_clock: MockClock):
    async with rogue() as peer:
        heard: list[Message] = []

        async def hear() -> None:
            heard.extend(await peer.hear())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await peer.say(HELLO, *map(Ping, range(3 * CONTROL_LIMIT)))
            await trio.sleep(0.1)
            peer.channel.close()
        assert [m.nonce for m in heard if isinstance(m, Pong)] == list(range(3 * CONTROL_LIMIT))


async def test_a_pong_that_nobody_asked_for_does_no_harm(autojump_clock: MockClock):
    async with rogue() as peer:
        await peer.say(HELLO, Pong(0), Pong((1 << 63) - 1))
        await trio.sleep(0.1)
        assert not peer.channel.closed
        assert peer.channel.rtt_s is None


# --- how fast the link is --------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_s", [1e5, 1e6, 1e8])
async def test_some_long_messages_tell_how_fast_the_link_is(autojump_clock: MockClock, bytes_s: float):
    async with channels(bytes_s) as (a, _, b, at_b):
        await trio.sleep(1)
        for sent in range(1, ENOUGH + 1):
            assert a.bytes_s is None
            await a.send(*step(ONE, 1 << 20))
            await trio.sleep(30)
            assert len(at_b.taken) == sent
        assert a.bytes_s == pytest.approx(bytes_s, rel=0.15)
        assert b.bytes_s is None, "it has sent nothing long"


async def test_short_messages_tell_nothing_of_it(autojump_clock: MockClock):
    async with channels(1e6) as (a, _, __, ___):
        for _ in range(20):
            await a.send(*step(ONE, 4096))
        await trio.sleep(5)
        assert a.bytes_s is None
