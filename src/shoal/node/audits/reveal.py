"""Shows a client the rows that this hop has sent on, so that the hop behind it can be audited.

They are those that are kept to be sent again when that hop is lost (:mod:`shoal.node.resend_buffer`): nothing
more is kept for audits. Only the channel that opened a session may ask. Each session has a bound of bytes and
all sessions together have a rate, so nobody can keep a node busy with showing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from weakref import WeakKeyDictionary

import trio

from shoal.errors import Busy, ChannelClosed, NotAllowed, ShoalError, UnknownSession
from shoal.net.channel import Channel
from shoal.node.handlers import Handlers
from shoal.node.hop import Hop
from shoal.node.rerouting import NOT_YOURS
from shoal.node.sessions import Sessions
from shoal.types import SessionId
from shoal.wire.messages import MAX_REVEALED, Reveal, Revealed, shorten

TIMES = 4
"""How often all of a session may be shown."""
BYTES_S = 32 << 20
"""Bytes a second that all sessions of a node are shown."""
BURST_S = 0.5
REVEAL_WITHIN_S = 4.0
"""The longest that a question waits for its turn and for whoever asks to take the answer."""


class RevealPace:
    """How much may be shown, and when. Pure: the caller brings the time."""

    def __init__(self, bytes_s: float = BYTES_S) -> None:
        self._bytes_s = bytes_s
        self._free_at = 0.0
        self._shown: WeakKeyDictionary[Hop, int] = WeakKeyDictionary()
        self._asked: WeakKeyDictionary[Hop, None] = WeakKeyDictionary()

    def begin(self, hop: Hop, rows: int) -> None:
        """Take a question in; :meth:`end` must follow.

        Raises:
            Busy: another one of the session is being answered.
            NotAllowed: the session was shown too much.
        """
        if hop in self._asked:
            raise Busy("rows of this session are being shown already")
        shown = self._shown.get(hop, 0) + rows
        if shown > TIMES * hop.opened.tokens:
            raise NotAllowed(f"the rows of this session were shown {TIMES} times")
        self._shown[hop] = shown
        self._asked[hop] = None

    def end(self, hop: Hop) -> None:
        """The question is answered."""
        self._asked.pop(hop, None)

    def wait_s(self, size: int, now: float) -> float:
        """How long ``size`` bytes have to wait for their turn, which they have from now on.

        Raises:
            Busy: for too long; then they have none.
        """
        ends = max(self._free_at, now - BURST_S) + size / self._bytes_s
        if ends - now > REVEAL_WITHIN_S:
            raise Busy("this node shows others as much as it may")
        self._free_at = ends
        return max(0.0, ends - now)


class RevealDesk:
    """Handles ``Reveal``.

    Args:
        spawn: runs what takes long in a task of its own.
    """

    def __init__(self, sessions: Sessions, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._sessions = sessions
        self._spawn = spawn
        self._pace = RevealPace()

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(Reveal, self._reveal)

    async def _reveal(self, channel: Channel, message: Reveal, payload: bytes) -> None:
        hop = self._sessions.get(SessionId(message.session))
        if hop is None or hop.client is not channel:
            self._refuse(channel, message, UnknownSession(NOT_YOURS))
            return
        try:
            # First of all: what is asked for counts, whether it is there or not.
            self._pace.begin(hop, min(message.tokens, hop.opened.tokens))
        except ShoalError as error:
            self._refuse(channel, message, error)
            return
        self._spawn(partial(self._answer, channel, message, hop))

    async def _answer(self, channel: Channel, message: Reveal, hop: Hop) -> None:
        try:
            with trio.fail_after(REVEAL_WITHIN_S):
                rows = await trio.to_thread.run_sync(_look, hop, message)
                size = sum(map(len, rows))
                await trio.sleep(self._pace.wait_s(size, trio.current_time()))
                with suppress(ChannelClosed):  # the client is gone
                    await channel.send(
                        Revealed(message.session, message.first, len(rows), size), b"".join(rows)
                    )
        except ShoalError as error:
            self._refuse(channel, message, error)
        except trio.TooSlowError:
            self._refuse(channel, message, Busy("this node is too busy to show rows"))
        finally:
            self._pace.end(hop)

    def _refuse(self, channel: Channel, message: Reveal, error: ShoalError) -> None:
        with suppress(ChannelClosed):  # the client is gone, or does not read
            channel.reply(Revealed(message.session, message.first, 0, 0, shorten(error.message)))


def _look(hop: Hop, message: Reveal) -> list[bytes]:
    """As many of the rows as a message may have.

    Raises:
        NotAllowed: they are not kept.
    """
    first = hop.sent_rows(message.first, 1)
    count = min(message.tokens, max(1, MAX_REVEALED // len(first[0]))) if first else 0
    rows = hop.sent_rows(message.first, count) if count else None
    if not rows:
        raise NotAllowed("these rows are not kept here any more")
    return rows
