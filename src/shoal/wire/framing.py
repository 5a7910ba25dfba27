"""Messages as bytes on a pipe, cut into fragments so that a long one never blocks a short one.

A fragment is ``>IIB``: the message's number on this pipe, the fragment's length, 1 if more follow; then
its bytes. The fragments of one message put together are ``>II``: the header's length, the payload's
length; then both. Fragments of different messages may alternate; those of one message are in order.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct

from shoal.errors import RemoteProtocolError
from shoal.wire.fields import MAX_PAYLOAD
from shoal.wire.messages import MAX_HEADER, Message, decode, encode

FRAGMENT = 65_510
"""Most bytes of one fragment: what another session's step may have to wait for, and one record of Noise."""
MAX_PARTIAL = 64
"""Messages that one peer may have begun and not ended."""

FIRST_LIMIT = 1024
"""Most bytes of a pipe's first message."""

_FRAGMENT = Struct(">IIB")
FRAGMENT_HEADER = _FRAGMENT.size
_LENGTHS = Struct(">II")

Payload = bytes | bytearray | memoryview
Received = tuple[Message, bytes]


class Outgoing:
    """One message on its way out, fragment by fragment."""

    __slots__ = ("_body", "_number", "_offset")

    def __init__(self, number: int, message: Message, payload: Payload = b"") -> None:
        header = encode(message)
        self._number = number
        self._body = memoryview(b"".join((_LENGTHS.pack(len(header), len(payload)), header, payload)))
        self._offset = 0

    @classmethod
    def of_fragment(cls, fragment: bytes) -> Outgoing:
        """A message that is one whole fragment already."""
        outgoing = cls.__new__(cls)
        outgoing._number, _, _ = _FRAGMENT.unpack_from(fragment)
        outgoing._body = memoryview(fragment)[_FRAGMENT.size :]
        outgoing._offset = 0
        return outgoing

    def __len__(self) -> int:
        """Bytes that are still to be sent, without fragment headers."""
        return len(self._body) - self._offset

    @property
    def begun(self) -> bool:
        """Whether some of it has been sent."""
        return self._offset > 0

    def whole(self) -> bytes | None:
        """The message in one fragment, ready for the pipe; ``None`` if it is longer, or has begun to go."""
        if self._offset or len(self._body) > FRAGMENT:
            return None
        return b"".join((_FRAGMENT.pack(self._number, len(self._body), False), self._body))

    def next_fragment(self) -> bytes:
        """The next fragment, ready for the pipe."""
        part = self._body[self._offset : self._offset + FRAGMENT]
        self._offset += len(part)
        return b"".join((_FRAGMENT.pack(self._number, len(part), len(self) > 0), part))


class _Partial:
    """A message of which some fragments have come."""

    __slots__ = ("_body", "expected")

    def __init__(self, first: memoryview) -> None:
        if len(first) < _LENGTHS.size:
            raise RemoteProtocolError(f"a message that begins with {len(first)} bytes")
        header, payload = _LENGTHS.unpack_from(first)
        if header > MAX_HEADER or payload > MAX_PAYLOAD:
            raise RemoteProtocolError(f"a message that declares {header} + {payload} bytes")
        self.expected = int(_LENGTHS.size + header + payload)
        self._body = bytearray(first)
        self._check()

    def extend(self, part: memoryview) -> None:
        self._body += part
        self._check()

    def _check(self) -> None:
        if len(self._body) > self.expected:
            raise RemoteProtocolError(f"a message longer than the {self.expected} bytes that it declares")

    def finish(self) -> Received:
        if len(self._body) != self.expected:
            raise RemoteProtocolError(
                f"a message that ends after {len(self._body)} of the {self.expected} bytes it declares"
            )
        header, payload = _LENGTHS.unpack_from(self._body)
        view = memoryview(self._body)
        body = bytes(view[_LENGTHS.size + header :])
        return decode(view[_LENGTHS.size : _LENGTHS.size + header], payload), body


def _whole(view: memoryview) -> Received:
    """A message that came in one fragment."""
    if len(view) < _LENGTHS.size:
        raise RemoteProtocolError(f"a message that begins with {len(view)} bytes")
    header, payload = _LENGTHS.unpack_from(view)
    if _LENGTHS.size + header + payload != len(view):
        raise RemoteProtocolError(f"a message that declares {header} + {payload} bytes in {len(view)}")
    end = _LENGTHS.size + header
    return decode(view[_LENGTHS.size : end], payload), bytes(view[end:])


def first_message(data: bytes) -> tuple[Message, int] | None:
    """The message that a pipe begins with and its size there; ``None`` until all of it has come.

    Raises:
        RemoteProtocolError: it is none, or not in one fragment.
    """
    if len(data) < _FRAGMENT.size:
        return None
    _, length, more = _FRAGMENT.unpack_from(data)
    if length > FIRST_LIMIT or more:
        raise RemoteProtocolError(f"a pipe that begins with a fragment of {length} bytes with flag {more}")
    end = _FRAGMENT.size + length
    if len(data) < end:
        return None
    return _whole(memoryview(data)[_FRAGMENT.size : end])[0], end


class Assembler:
    """Turns the bytes of a pipe into messages.

    What a peer has begun is held only as it arrives, in at most ``MAX_PARTIAL`` messages of at most
    ``limit`` bytes altogether: declaring a length costs us nothing.
    """

    def __init__(self, limit: int = MAX_PAYLOAD + MAX_HEADER) -> None:
        self._buffer = bytearray()
        self._partial: dict[int, _Partial] = {}
        self._held = 0
        self._limit = limit

    @property
    def idle(self) -> bool:
        """Whether nothing has begun: the next byte is the first of a message's first fragment."""
        return not self._buffer and not self._partial

    @property
    def held(self) -> int:
        """Bytes of messages that have begun and not ended."""
        return self._held

    def feed(self, data: bytes) -> Iterator[Received]:
        """Take the next bytes of the pipe; yield every message that they complete.

        Raises:
            RemoteProtocolError: the peer broke the framing. The pipe must be closed.
        """
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _FRAGMENT.size:
                number, length, more = _FRAGMENT.unpack_from(buffer, start)
                if length > FRAGMENT or more > 1 or (more and not length):
                    raise RemoteProtocolError(f"a fragment of {length} bytes with flag {more}")
                end = start + _FRAGMENT.size + length
                if len(buffer) < end:
                    break
                received = self._take(number, bytes(buffer[start + _FRAGMENT.size : end]), bool(more))
                start = end
                if received is not None:
                    yield received
        finally:
            del buffer[:start]

    def _take(self, number: int, part: bytes, more: bool) -> Received | None:
        view = memoryview(part)
        partial = self._partial.get(number)
        if partial is None and not more:
            return _whole(view)
        if partial is None:
            if len(self._partial) >= MAX_PARTIAL:
                raise RemoteProtocolError(f"more than {MAX_PARTIAL} messages begun and not ended")
            partial = self._partial[number] = _Partial(view)
        else:
            partial.extend(view)
        if more:
            self._held += len(part)
            if self._held > self._limit:
                raise RemoteProtocolError(f"more than {self._limit} bytes of unfinished messages")
            return None
        del self._partial[number]
        # The last part was never counted: it did not have to wait for anything.
        self._held -= partial.expected - len(part)
        return partial.finish()
