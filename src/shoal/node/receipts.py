"""What a client asks when it wants to know for certain what this hop has done: receipts, signed.

Only the channel that opened a session may ask. Hashes were noted as steps were computed; trees and signatures
are made here, on a thread of their own, so that no step waits for them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

import trio

from shoal.errors import Busy, ChannelClosed, NotAllowed, ShoalError, UnknownSession
from shoal.net.channel import Channel
from shoal.node.handlers import Handlers
from shoal.node.hop import Hop
from shoal.node.rerouting import NOT_YOURS
from shoal.node.sessions import Sessions
from shoal.trust.consensus import commitment
from shoal.trust.receipt import CounterSign, Sign, Work, sign_windows, unsigned_receipts
from shoal.trust.signing import CommittedWork, WorkLog
from shoal.types import Codec, PeerId, SessionId
from shoal.wire.messages import MAX_WINDOWS, GetReceipts, Receipts, SignedWindow, shorten

SIGNERS = 1
"""Threads that sign, for all sessions: receipts take no more of a machine than one core."""
SIGN_WITHIN_S = 20.0
"""The longest that a question waits for the steps before it, and for its turn."""


_Made = TypeVar("_Made")


class ReceiptDesk:
    """Handles ``GetReceipts``.

    Args:
        sign: with this node's key.
        peer: this node.
        spawn: runs what takes long in a task of its own.
        countersign: by the delegate of a node that has staked.
    """

    def __init__(
        self,
        sessions: Sessions,
        sign: Sign,
        peer: PeerId,
        spawn: Callable[[Callable[[], Awaitable[None]]], None],
        countersign: CounterSign,
    ) -> None:
        self._countersign = countersign
        self._sessions = sessions
        self._sign = sign
        self._peer = peer
        self._spawn = spawn
        self._limiter = trio.CapacityLimiter(SIGNERS)

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(GetReceipts, self._get)

    async def _get(self, channel: Channel, message: GetReceipts, payload: bytes) -> None:
        hop = self._sessions.get(SessionId(message.session))
        if hop is None or hop.client is not channel:
            self._refuse(channel, message, UnknownSession(NOT_YOURS))
            return
        if hop.opened.adapter:
            # What is signed names a model and no adapter: whoever computed it again would find other rows.
            self._refuse(channel, message, NotAllowed("receipts are not given for sessions with an adapter"))
            return
        try:
            if message.commit:
                hop.signing.commit(message.nonce)
            news = message.commit or hop.signing.begin(message.nonce)
        except ShoalError as error:
            self._refuse(channel, message, error)
            return
        if news:
            self._spawn(partial(self._answer, channel, message, hop))
        else:
            self._reply(channel, message, hop)

    async def _answer(self, channel: Channel, message: GetReceipts, hop: Hop) -> None:
        try:
            with trio.fail_after(SIGN_WITHIN_S):
                if message.commit:
                    done = await self._worked(message, hop)
                    hop.signing.keep(done)
                    hash = await self._made(done, self._commitment)
                    self._send(channel, Receipts(message.session, 0, (), "", hash))
                    return
                done = hop.signing.committed(message.nonce, message.tokens) or await self._worked(
                    message, hop
                )
                hop.signing.signed(message.nonce, await self._made(done, self._signed))
        except ShoalError as error:
            self._refuse(channel, message, error)
        except trio.TooSlowError:
            self._refuse(channel, message, Busy("this node is too busy to sign receipts"))
        else:
            self._reply(channel, message, hop)

    async def _worked(self, message: GetReceipts, hop: Hop) -> CommittedWork:
        """What the hop has done, as it is now."""
        log = await hop.worked(message.tokens)
        return CommittedWork(message.tokens, work_of(hop, message.nonce, log.codec), log)

    async def _made(self, done: CommittedWork, make: Callable[[Work, int, WorkLog], _Made]) -> _Made:
        """What a thread of its own makes of it."""
        run = partial(make, done.work, done.tokens, done.log)
        return await trio.to_thread.run_sync(run, limiter=self._limiter)

    def _signed(self, work: Work, tokens: int, log: WorkLog) -> list[SignedWindow]:
        return sign_windows(work, tokens, log.came, log.went, self._sign, self._countersign)

    def _commitment(self, work: Work, tokens: int, log: WorkLog) -> bytes:
        receipts = unsigned_receipts(work, tokens, log.came, log.went)
        return commitment(work.nonce, self._peer, receipts)

    def _reply(self, channel: Channel, message: GetReceipts, hop: Hop) -> None:
        windows = hop.signing.since(message.first, MAX_WINDOWS)
        self._send(channel, Receipts(message.session, message.first, windows))

    def _refuse(self, channel: Channel, message: GetReceipts, error: ShoalError) -> None:
        self._send(channel, Receipts(message.session, message.first, (), shorten(error.message)))

    def _send(self, channel: Channel, reply: Receipts) -> None:
        with suppress(ChannelClosed):  # the client is gone, or does not read
            channel.reply(reply)


def work_of(hop: Hop, nonce: bytes, codec: Codec) -> Work:
    """What the receipts that a hop signs for a nonce have in common."""
    opened = hop.opened
    return Work(
        session=opened.session,
        nonce=nonce,
        opening=hop.opening,
        hop=opened.hop,
        start=opened.start,
        end=opened.end,
        digest=opened.digest,
        numerics=opened.numerics,
        codec=codec,
    )
