"""Proves to a client that a block of a session was computed with the weights of its model.

A hop commits to the rows between its blocks before it hears which block it is to prove, so that what it shows
of one must fit both its neighbours. All is computed again for it: nothing more is kept for proofs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from weakref import WeakKeyDictionary

import trio

from shoal.errors import Busy, ChannelClosed, NotAllowed, ShoalError, UnknownSession
from shoal.executor.arrays import Floats
from shoal.executor.codecs import decode
from shoal.executor.proofs.tracer import BlockTracer, TracedBlock
from shoal.executor.runner import KvState
from shoal.net.channel import Channel
from shoal.node.audits.reveal import RevealPace
from shoal.node.handlers import Handlers
from shoal.node.hop import Hop
from shoal.node.receipts import work_of
from shoal.node.rerouting import NOT_YOURS
from shoal.node.sessions import Sessions
from shoal.trust.proofs.block_proof import BlockStatement, prove_block, window_root
from shoal.trust.proofs.draw import MAX_PAST
from shoal.trust.receipt import Receipt, unsigned_receipts
from shoal.trust.rows import WINDOW, RowLog, row_hashes, windows
from shoal.trust.signing import MAX_QUESTIONS, WorkLog
from shoal.types import SessionId
from shoal.wire.messages import shorten
from shoal.wire.payload import encoded_bytes
from shoal.wire.proofs import MAX_PROOF, Prove, Proved

QUESTIONS = 2 * MAX_QUESTIONS
"""Of one session: two for each answer that receipts are signed for."""
PROVERS = 1
"""Threads that prove, for all sessions."""
PROVE_WITHIN_S = 10.0
"""The longest that a question waits for its turn, for the proof, and for whoever asks to take it."""


class ProofDesk:
    """Handles ``Prove``.

    Args:
        spawn: runs what takes long in a task of its own.
    """

    def __init__(self, sessions: Sessions, spawn: Callable[[Callable[[], Awaitable[None]]], None]) -> None:
        self._sessions = sessions
        self._spawn = spawn
        self._limiter = trio.CapacityLimiter(PROVERS)
        self._pace = RevealPace()
        self._counts: WeakKeyDictionary[Hop, int] = WeakKeyDictionary()
        self._asked: WeakKeyDictionary[Hop, None] = WeakKeyDictionary()

    def register(self, handlers: Handlers) -> None:
        """Have the messages given here."""
        handlers.register(Prove, self._prove)

    async def _prove(self, channel: Channel, message: Prove, payload: bytes) -> None:
        hop = self._sessions.get(SessionId(message.session))
        if hop is None or hop.client is not channel:
            self._refuse(channel, message, UnknownSession(NOT_YOURS))
            return
        try:
            self._begin(hop)
        except ShoalError as error:
            self._refuse(channel, message, error)
            return
        self._spawn(partial(self._answer, channel, message, payload, hop))

    def _begin(self, hop: Hop) -> None:
        if hop in self._asked:
            raise Busy("something of this session is being proved already")
        if hop.opened.adapter:
            raise NotAllowed("there are no proofs for sessions with an adapter: no receipt names it")
        if hop.loose:
            raise NotAllowed(
                "there are no proofs for sessions whose steps say of pictures what no receipt does"
            )
        asked = self._counts.get(hop, 0) + 1
        if asked > QUESTIONS:
            raise NotAllowed(f"proofs of this session were asked for {QUESTIONS} times")
        self._counts[hop] = asked
        self._asked[hop] = None

    async def _answer(self, channel: Channel, message: Prove, payload: bytes, hop: Hop) -> None:
        try:
            with trio.fail_after(PROVE_WITHIN_S):
                made = await self._made(message, payload, hop)
                if len(made) > MAX_PROOF:
                    raise NotAllowed(f"the proof has {len(made)} bytes; at most {MAX_PROOF} are sent")
                await trio.sleep(self._pace.wait_s(len(made), trio.current_time()))
                with suppress(ChannelClosed):  # the client is gone
                    await channel.send(_reply(message, size=len(made)), made)
        except ShoalError as error:
            self._refuse(channel, message, error)
        except trio.TooSlowError:
            self._refuse(channel, message, Busy("this node is too busy to prove anything"))
        finally:
            self._asked.pop(hop, None)

    async def _made(self, message: Prove, payload: bytes, hop: Hop) -> bytes:
        """The payload of the answer.

        Raises:
            NotAllowed: the window is none of the session, the rows are not those that came, or there are no
                proofs of these blocks.
        """
        log = await hop.worked(message.tokens)
        read = partial(_asked_window, message, payload, hop, log)
        receipt, came = await trio.to_thread.run_sync(read, limiter=self._limiter)
        if message.block is None:
            return await hop.engine.traced(
                SessionId(message.session), WINDOW, partial(_roots, hop, message, came)
            )
        if not hop.opened.start <= message.block < hop.opened.end:
            raise NotAllowed(f"this hop has blocks {hop.opened.start}:{hop.opened.end} of the session")
        lay_open = partial(_laid_open, hop, message, message.block, came)
        traced, tracer = await hop.engine.traced(SessionId(message.session), WINDOW, lay_open)
        prove = partial(_proof, receipt, message.block, traced, tracer)
        return await trio.to_thread.run_sync(prove, limiter=self._limiter)

    def _refuse(self, channel: Channel, message: Prove, error: ShoalError) -> None:
        with suppress(ChannelClosed):  # the client is gone, or does not read
            channel.reply(_reply(message, refused=shorten(error.message), busy=isinstance(error, Busy)))


def _reply(message: Prove, *, size: int = 0, refused: str = "", busy: bool = False) -> Proved:
    return Proved(message.session, message.window, message.block, size, refused, busy)


def _asked_window(message: Prove, payload: bytes, hop: Hop, log: WorkLog) -> tuple[Receipt, Floats]:
    """The receipt of the window, and the rows that the hop was given there.

    Raises:
        NotAllowed: the session has no such window, or these are other rows.
    """
    if message.window >= windows(message.tokens):
        raise NotAllowed(f"{message.tokens} tokens have no window {message.window}")
    receipts = unsigned_receipts(work_of(hop, message.nonce, log.codec), message.tokens, log.came, log.went)
    receipt, width = receipts[message.window], hop.engine.width
    count = min(WINDOW, message.tokens - message.window * WINDOW)
    given = RowLog()
    if len(payload) == encoded_bytes(count, width, log.codec):
        given.note(0, count, row_hashes(payload, log.codec, count, width))
    if given.window(0)[1] != receipt.came:
        raise NotAllowed("these are not the rows that this hop was given in that window")
    return receipt, decode(payload, log.codec, count, width)


def _roots(hop: Hop, message: Prove, came: Floats, tracer: BlockTracer, state: KvState) -> bytes:
    """A root for each boundary between the hop's blocks."""
    inner = range(hop.opened.start, hop.opened.end - 1)
    outs = tracer.boundaries(state, inner, message.window * WINDOW, came)
    return b"".join(window_root(rows) for rows in outs)


def _laid_open(
    hop: Hop, message: Prove, block: int, came: Floats, tracer: BlockTracer, state: KvState
) -> tuple[TracedBlock, BlockTracer]:
    """The block's forward, and what has the integers of its weights.

    Raises:
        NotAllowed: too much is before the window.
    """
    first = message.window * WINDOW
    if tracer.past_bytes(first) > MAX_PAST:
        raise NotAllowed(f"before position {first} there are more keys and values than a proof may have")
    outs = tracer.boundaries(state, range(hop.opened.start, block), first, came)
    return tracer.trace(state, block, first, outs[-1] if outs else came), tracer


def _proof(receipt: Receipt, block: int, traced: TracedBlock, tracer: BlockTracer) -> bytes:
    statement = BlockStatement(receipt.hash, block, window_root(traced.came), window_root(traced.went))
    proof = prove_block(
        statement, traced.came, traced.past, traced.inputs, traced.sums, tracer.weights(block)
    )
    return proof.encoded
