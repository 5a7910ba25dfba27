"""What a channel has yet to send, and what goes next. Pure: no I/O, no clock, no lock.

A message is *gathered* first. Gathered messages leave whole, many in one record, as long as nothing waits
before them and they are short. What cannot leave so is *queued*: each session has a queue of its own, and one
fragment of each is sent in turn, so that nobody waits for another session's long message. Within a session
messages keep their order.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable

from shoal.errors import RemoteProtocolError
from shoal.wire.framing import FRAGMENT, FRAGMENT_HEADER, MAX_PARTIAL, Outgoing, Payload
from shoal.wire.messages import Message

QUEUED_LIMIT = 64 << 20
"""Bytes waiting to be sent, past which the outbox is full. One more message still comes in, however long."""

CONTROL_LIMIT = 256
"""Messages outside of sessions waiting to be sent: a peer that asks for more does not read its answers."""

RECORD = FRAGMENT_HEADER + FRAGMENT
"""Most bytes of one record: more than one fragment would make others wait for longer than a fragment may."""

CONTROL = b""
"""The queue of messages outside of sessions."""


class Outbox:
    """The messages that wait to be sent over one pipe."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._gathered: list[tuple[bytes, Outgoing]] = []
        self._in_record = 0  # how many of those gathered the last record holds
        self._queues: OrderedDict[bytes, deque[Outgoing]] = OrderedDict()  # whose turn it is comes first
        self._queued_bytes = 0
        self._begun = 0  # messages of which a part has been sent, and not yet the rest

    @property
    def queued_bytes(self) -> int:
        """Bytes in the queues, without fragment headers."""
        return self._queued_bytes

    @property
    def full(self) -> bool:
        """Whether more than ``QUEUED_LIMIT`` bytes are queued. A full outbox still takes messages."""
        return self._queued_bytes > QUEUED_LIMIT

    @property
    def queued(self) -> bool:
        """Whether anything is queued."""
        return bool(self._queues)

    def waits(self, queue: bytes) -> bool:
        """Whether anything is in a queue."""
        return queue in self._queues

    def gather(self, message: Message, payload: Payload = b"", queue: bytes | None = None) -> int:
        """Take a message in; returns how many are gathered now.

        Args:
            queue: where it is to wait if it must; by default with its session (:func:`queue_of`).

        Raises:
            RemoteProtocolError: ``CONTROL_LIMIT`` messages outside of sessions are queued already.
        """
        queue = queue_of(message) if queue is None else queue
        # Whoever sends a session's messages waits for room; nobody waits with these, so they have a bound.
        if queue == CONTROL and len(self._queues.get(CONTROL, ())) >= CONTROL_LIMIT:
            raise RemoteProtocolError("the peer asks and does not read")
        # Numbers begin again after four billion; by then no fragment of their first message is on its way.
        self._gathered.append((queue, Outgoing(self.next_number(), message, payload)))
        return len(self._gathered)

    def next_number(self) -> int:
        """Set the number of a message aside, for one that is made elsewhere."""
        return next(self._numbers) & 0xFFFFFFFF

    def gather_fragments(self, fragments: Iterable[tuple[bytes, bytes]]) -> None:
        """Take in messages of sessions that are whole fragments already, with numbers that were set aside."""
        self._gathered += [(queue, Outgoing.of_fragment(fragment)) for queue, fragment in fragments]

    def record(self) -> bytes:
        """What may be sent before all else: the first gathered messages, as many as one record takes.

        Empty when nothing is gathered, when messages are queued before them, or when the first is too long.
        :meth:`record_sent` takes them out; until then the next call gives the same.
        """
        parts: list[bytes] = []
        size = 0
        for _, outgoing in () if self._queues else self._gathered:
            whole = outgoing.whole()
            if whole is None or size + len(whole) > RECORD:
                break
            parts.append(whole)
            size += len(whole)
        self._in_record = len(parts)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def record_sent(self) -> None:
        """The last record has been sent."""
        del self._gathered[: self._in_record]
        self._in_record = 0

    def queue_gathered(self) -> None:
        """Move what is gathered to the queues, for :meth:`next_fragment`."""
        for queue, outgoing in self._gathered:
            self._queues.setdefault(queue, deque()).append(outgoing)
            self._queued_bytes += len(outgoing)
        self._gathered.clear()
        self._in_record = 0

    def next_fragment(self) -> bytes | None:
        """Take out one fragment of the queue whose turn it is; ``None`` when nothing is queued."""
        if not self._queues:
            return None
        name, queue = next(item for item in self._queues.items() if self._may_go(item[1][0]))
        message, begun = queue[0], queue[0].begun
        fragment = message.next_fragment()
        self._begun += (len(message) > 0) - begun
        if not len(message):
            queue.popleft()
        if queue:
            self._queues.move_to_end(name)
        else:
            del self._queues[name]
        self._queued_bytes -= len(fragment) - FRAGMENT_HEADER
        return fragment

    def _may_go(self, message: Outgoing) -> bool:
        """Whether its next fragment may be sent: a peer puts together ``MAX_PARTIAL`` messages at a time."""
        return message.begun or len(message) <= FRAGMENT or self._begun < MAX_PARTIAL


def queue_of(message: Message) -> bytes:
    """Where a message waits: in its session's queue, or in that of all messages outside of sessions."""
    return getattr(message, "session", CONTROL)
