"""What goes next over a pipe, and what bounds what waits."""

from __future__ import annotations

import pytest

from shoal.errors import RemoteProtocolError
from shoal.net import outbox as outbox_module
from shoal.net.outbox import CONTROL, CONTROL_LIMIT, RECORD, Outbox
from shoal.wire.framing import FRAGMENT, MAX_PARTIAL, Assembler
from shoal.wire.messages import Close, Message, Opened, Ping, Step
from shoal.wire.payload import hidden_states

ONE, TWO = b"1" * 16, b"2" * 16


def step(session: bytes, size: int) -> tuple[Step, bytes]:
    """A step with a payload of ``size`` bytes, or up to three less."""
    return Step(session, 1, 0, 1, 0, hidden_states("float32", 1, size // 4)), bytes(size // 4 * 4)


def arrive(*pieces: bytes) -> list[tuple[Message, bytes]]:
    """The messages that bytes on a pipe give."""
    assembler = Assembler()
    return [received for piece in pieces for received in assembler.feed(piece)]


def drain(outbox: Outbox) -> list[bytes]:
    """Every fragment that is queued, in its order."""
    return list(iter(outbox.next_fragment, None))


# --- what may go at once -----------------------------------------------------------------------------------


def test_short_messages_that_are_gathered_leave_in_one_record():
    outbox = Outbox()
    sent = [step(ONE, 4096), (Close(TWO), b""), step(ONE, 8)]
    assert [outbox.gather(*message) for message in sent] == [1, 2, 3]
    record = outbox.record()
    outbox.record_sent()
    assert arrive(record) == sent
    assert outbox.record() == b""


def test_a_record_that_was_not_sent_is_given_again():
    outbox = Outbox()
    outbox.gather(*step(ONE, 4096))
    assert outbox.record() == outbox.record() != b""


def test_no_record_is_longer_than_a_fragment_may_be():
    outbox = Outbox()
    sent = [step(ONE if i % 2 else TWO, 24_000) for i in range(9)]
    for message in sent:
        outbox.gather(*message)
    records: list[bytes] = []
    while record := outbox.record():
        records.append(record)
        outbox.record_sent()
    assert 1 < len(records) < len(sent)
    assert max(map(len, records)) <= RECORD
    assert arrive(*records) == sent


def test_a_message_of_exactly_one_fragment_goes_at_once_and_one_byte_more_does_not():
    empty = Outbox()
    empty.gather(*step(ONE, 4000))
    room = FRAGMENT - (len(empty.record()) - 4000)
    for size, whole in ((room // 4 * 4, True), (room // 4 * 4 + 16, False)):
        outbox = Outbox()
        outbox.gather(*step(ONE, size))
        assert bool(outbox.record()) is whole


def test_nothing_overtakes_what_is_queued():
    outbox = Outbox()
    first, second = step(ONE, 4096), step(ONE, 8)
    outbox.gather(*first)
    outbox.queue_gathered()
    outbox.gather(*second)
    assert outbox.record() == b""
    outbox.queue_gathered()
    assert arrive(*drain(outbox)) == [first, second]


def test_short_messages_before_a_long_one_still_go_at_once():
    outbox = Outbox()
    short, long = step(ONE, 8), step(ONE, 300_000)
    outbox.gather(*short)
    outbox.gather(*long)
    record = outbox.record()
    outbox.record_sent()
    assert outbox.record() == b""
    outbox.queue_gathered()
    assert arrive(record, *drain(outbox)) == [short, long]


# --- what waits --------------------------------------------------------------------------------------------


def test_sessions_take_turns_fragment_by_fragment():
    outbox = Outbox()
    long, short = step(ONE, 10 * FRAGMENT), step(TWO, 8)
    for message in (long, short):
        outbox.gather(*message)
    outbox.queue_gathered()
    fragments = drain(outbox)
    assert arrive(*fragments) == [short, long]
    assert arrive(*fragments[:2]) == [short], "it waits for one fragment of the other session"


def test_messages_of_one_session_keep_their_order():
    outbox = Outbox()
    sent = [step(ONE, 3 * FRAGMENT), step(ONE, 8), (Close(ONE), b"")]
    for message in sent:
        outbox.gather(*message)
    outbox.queue_gathered()
    assert arrive(*drain(outbox)) == sent


def test_no_more_messages_are_begun_at_a_time_than_a_peer_puts_together():
    outbox = Outbox()
    sent = [step(bytes([number]) * 16, 3 * FRAGMENT) for number in range(MAX_PARTIAL + 6)]
    short = step(bytes([255]) * 16, 8)
    for message in (*sent, short):
        outbox.gather(*message)
    outbox.queue_gathered()
    received = arrive(*drain(outbox))
    assert received[0] == short, "it is whole in one fragment, so it need not wait for the others"
    assert received[1:] == sent


def test_a_message_waits_in_the_queue_that_was_named():
    outbox = Outbox()
    outbox.gather(*step(ONE, 3 * FRAGMENT))
    outbox.gather(Ping(7), queue=ONE)
    outbox.queue_gathered()
    assert [message for message, _ in arrive(*drain(outbox))][-1] == Ping(7)


def test_the_bytes_that_wait_are_counted_down_to_nothing():
    outbox = Outbox()
    assert outbox.next_fragment() is None
    for session in (ONE, TWO):
        outbox.gather(*step(session, 100_000))
    assert outbox.queued_bytes == 0, "what is gathered has not had to wait yet"
    outbox.queue_gathered()
    assert 200_000 < outbox.queued_bytes < 200_500
    assert outbox.queued
    drain(outbox)
    assert outbox.queued_bytes == 0
    assert not outbox.queued


# --- its bounds --------------------------------------------------------------------------------------------


def test_it_is_full_while_more_than_the_limit_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(outbox_module, "QUEUED_LIMIT", 1 << 20)
    outbox = Outbox()
    outbox.gather(*step(ONE, (1 << 20) + 4))
    outbox.queue_gathered()
    assert outbox.full
    outbox.next_fragment()
    assert not outbox.full


def test_messages_outside_of_sessions_that_wait_are_bounded_and_others_are_not():
    outbox = Outbox()
    for number in range(CONTROL_LIMIT):
        outbox.gather(Ping(number))
        outbox.queue_gathered()
    for message, queue in ((Ping(0), None), (Opened(ONE, 1), CONTROL)):
        with pytest.raises(RemoteProtocolError, match="does not read"):
            outbox.gather(message, queue=queue)
    assert outbox.gather(Close(ONE)) == 1
