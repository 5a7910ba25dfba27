"""HTTP/1 as one reads it only one way. What a proxy before us might read otherwise is refused.

Where two readers find the end of a request in different places, what one takes for a body is the next request
to the other (request smuggling). h11 follows the specification, which lets a server be lenient in some things
(RFC 9112, sections 2.2, 5.1, 5.2, 6.1 and 6.3). Here they are errors, and the connection is closed:

- Content-Length beside Transfer-Encoding, or said twice, even alike;
- Transfer-Encoding in HTTP/1.0;
- lines of the head that end in a bare LF, or go on in the next line (obs-fold).

What h11 refuses itself: lengths that are no numbers, other codings than chunked, a space before the colon,
two Host, lines within chunks that end in a bare LF.
"""

from __future__ import annotations

import re
from typing import TypeAlias

import h11

HttpEvent: TypeAlias = h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]

_END = b"\r\n\r\n"
_AMBIGUOUS = re.compile(rb"(?<!\r)\n|\r\n[ \t]")
_LENGTH = re.compile(rb"\r\ncontent-length:([^\r\n]*)", re.IGNORECASE)


class StrictConnection(h11.Connection):
    """A server's end of a connection."""

    def next_event(self) -> HttpEvent:
        """As h11's.

        Raises:
            h11.RemoteProtocolError: also what this module refuses.
        """
        if self.their_state is h11.IDLE:
            _check_head(self.trailing_data[0])
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check_framing(event)
        return event


def _check_head(received: bytes) -> None:
    """Look at the bytes of a head, of which some may still have to come; behind its end may be a body."""
    head, _, _ = received.partition(_END)
    if _AMBIGUOUS.search(head):
        raise h11.RemoteProtocolError("a line of the head that ends otherwise than in CRLF, or is folded")
    lengths = _LENGTH.findall(head)
    if len(lengths) > 1 or any(b"," in length for length in lengths):
        raise h11.RemoteProtocolError("more than one Content-Length")


def _check_framing(request: h11.Request) -> None:
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" not in names:
        return
    if b"content-length" in names:
        raise h11.RemoteProtocolError("Content-Length beside Transfer-Encoding")
    if request.http_version < b"1.1":
        raise h11.RemoteProtocolError("Transfer-Encoding in HTTP/1.0")
