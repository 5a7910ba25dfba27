"""One hop of a ring as its client sees it: where it is, the channel to it, and what it is asked."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import trio

from shoal.client.paying.work import HopWork
from shoal.client.ring.hop_pace import NEWCOMER_STEPS, STEPS, HopPace
from shoal.errors import (
    Busy,
    ChannelClosed,
    DeadlineExceeded,
    NotAllowed,
    OutdatedPeer,
    RemoteProtocolError,
    ShoalError,
    from_code,
)
from shoal.net.channel import Channel
from shoal.net.pool import ChannelPool
from shoal.swarm.announcement import AskedPrice
from shoal.tasks import seconds_left
from shoal.trust.rows import windows
from shoal.types import Codec, PeerAddress, PeerId, Span
from shoal.wire.messages import (
    GetReceipts,
    Locate,
    Located,
    Open,
    Opened,
    Receipts,
    Refused,
    Reroute,
    Rerouted,
    Reveal,
    Revealed,
    SignedWindow,
    shorten,
)
from shoal.wire.proofs import Prove, Proved
from shoal.wire.turn import TraceTurn
from shoal.wire.versions import check_codec

OWED = 16
"""Questions without a reply that are remembered of a hop."""


@dataclass(frozen=True, slots=True)
class RouteHop:
    """One stage of a route with what is needed to reach it."""

    address: PeerAddress
    span: Span
    promised_s: float = 0.0
    """Time of a decode step there when it was chosen, waiting and computing; 0 if nobody had measured one."""
    proven: bool = True
    """Whether it has answered before."""
    noise_key: bytes = b""
    """The key that the channel to it must have at its other end; empty where any will do."""
    attested: str = ""
    """What it has shown to run on, in few words; empty where it was not asked."""
    price: AskedPrice | None = None
    """What it asks."""

    def __str__(self) -> str:
        return f"the hop {self.address.peer} (blocks {self.span})"


class HopRefused(ShoalError):
    """A hop did not take part; ``error`` says why, ``peer`` which.

    ``gone`` is the hop after it, if it says that it cannot reach that one.
    """

    code = "hop_refused"

    def __init__(self, peer: PeerId, error: ShoalError, gone: PeerId | None = None) -> None:
        super().__init__(error.message, check=error.check, next_command=error.next_command)
        self.peer = peer
        self.error = error
        self.gone = gone


class HopNotAsked(HopRefused):
    """This client could not ask a hop, as it has no terms for it, or what is asked is newer than the hop's
    release: that is not the hop's fault."""


class HopLost(ChannelClosed):
    """A hop went away in the middle of a session."""

    def __init__(self, hop: RouteHop, reason: str) -> None:
        super().__init__(
            shorten(f"{hop} is gone: {reason}"),
            check="see shoal status for who serves which blocks",
            next_command="the same request again; it takes another route",
        )
        self.peer = hop.address.peer


class HopFailed(ShoalError):
    """A hop reports that a step came to nothing; ``error`` says why, ``peer`` which hop it was."""

    code = "hop_failed"

    def __init__(self, hop: RouteHop, error: ShoalError) -> None:
        super().__init__(error.message, check=error.check, next_command=error.next_command)
        self.peer = hop.address.peer
        self.error = error


HopRequest = Open | Reroute | Locate | GetReceipts | Reveal | Prove
HopReply = Opened | Refused | Rerouted | Located | Receipts | Revealed | Proved
_FITS: dict[type[HopRequest], tuple[type[HopReply], ...]] = {
    Open: (Opened, Refused),
    Reroute: (Rerouted,),
    Locate: (Located,),
    GetReceipts: (Receipts,),
    Reveal: (Revealed,),
    Prove: (Proved,),
}


class RingHop:
    """A hop that takes part in a session, or is asked to."""

    def __init__(self, hop: RouteHop) -> None:
        self.hop = hop
        self.channel: Channel | None = None
        self.open = False
        self.codec: Codec = "float32"
        """What its way onward asks for."""
        self.rolls_back = False
        """Whether its cache can return to any earlier position, as it says."""
        self.credits = False
        """Whether it keeps credits, as it says."""
        self.work: HopWork | None = None
        """What it was asked to do, once it has its place."""
        self.opening = bytes(16)
        """What it says that all its receipts of this session will have."""
        self.held = 0
        """Tokens of which it says that it has kept the KV."""
        self.held_codec: Codec = "float32"
        """In which their rows came."""
        self.entered = 0
        """Positions of which the next hop has what it was given from another, whose place this one took."""
        self.pace = HopPace(hop.promised_s, STEPS if hop.proven else NEWCOMER_STEPS)
        self.lost: str | None = None
        """Why the hop is no longer to be counted on."""
        self.contested = False
        """Whether that is another hop's word against its own, so that it may be asked again."""
        self.asked: HopRequest | None = None
        self._reply: HopReply | None = None
        self._payload = b""
        self._replied = trio.Event()
        self._owed: deque[type[HopRequest]] = deque(maxlen=OWED)
        """Questions that were given up: their replies may yet come, before those to later ones."""

    @property
    def peer(self) -> PeerId:
        return self.hop.address.peer

    def tell(self, turn: TraceTurn) -> None:
        """Say for what the steps that follow are. Nobody answers; older releases go without."""
        if self.open and self.channel is not None:
            with suppress(ChannelClosed, OutdatedPeer):
                self.channel.send_now(turn)

    async def enter(self, pool: ChannelPool, message: Open, timeout_s: float, codec: Codec | None) -> None:
        """Open the session here.

        Args:
            codec: the session's; ``None`` where it is chosen once all hops have opened it.

        Raises:
            HopNotAsked: its release does not know that codec, or what else is asked.
            HopRefused: it cannot be reached, has no room, or serves something else.
        """
        until = trio.current_time() + timeout_s
        try:
            # One deadline for both: what dialling took, the reply does not have.
            channel = await pool.get(self.hop.address, deadline_s=timeout_s)
            if self.hop.noise_key and channel.noise_key != self.hop.noise_key:
                raise NotAllowed(f"the channel to {self.peer} does not end in the machine that it has shown")
            if codec is not None:
                check_codec(codec, channel.version)
            self.channel = channel
            reply = await self.ask(message, seconds_left(until))
        except DeadlineExceeded:
            late = DeadlineExceeded(f"{self.peer} did not open the session in time")
            raise HopRefused(self.peer, late) from None
        except OutdatedPeer as error:
            raise HopNotAsked(self.peer, error) from error
        except ShoalError as error:
            raise HopRefused(self.peer, error) from error
        if isinstance(reply, Refused):
            error = from_code(
                reply.code, reply.message, retry_after_s=reply.retry_after_s, tokens_free=reply.tokens_free
            )
            # It may speak of the one after it, and of nobody else.
            onward = message.next.peer if message.next is not None else None
            raise HopRefused(self.peer, error, PeerId(onward) if onward and reply.gone == onward else None)
        if isinstance(reply, Opened):
            self.codec = reply.codec
            self.rolls_back = reply.rolls_back
            self.opening = reply.opening
            if reply.held and reply.held not in {name.tokens for name in message.caches}:
                error = RemoteProtocolError(f"it has kept {reply.held} tokens, which it was not asked for")
                raise HopRefused(self.peer, error)
            self.held, self.held_codec = reply.held, reply.held_codec
            self.credits = reply.credits
        self.open = True

    async def ask(self, message: HopRequest, timeout_s: float, payload: bytes = b"") -> HopReply:
        """Ask, and wait for the reply. One question at a time.

        Raises:
            HopLost: the hop is gone.
            DeadlineExceeded: it did not reply in time.
        """
        if self.channel is None or self.lost is not None:
            raise HopLost(self.hop, self.lost or "it was never reached")
        self.asked, self._reply, self._replied = message, None, trio.Event()
        try:
            with trio.move_on_after(timeout_s):
                await self.channel.send(message, payload)
                await self._replied.wait()
        finally:
            if self._reply is None:
                self._owed.append(type(message))
            self.asked = None
        # First: a reply counts, although the hop was lost right after it.
        if self._reply is not None:
            return self._reply
        if self.lost is not None:
            raise HopLost(self.hop, self.lost)
        raise DeadlineExceeded(f"{self.peer} did not reply within {timeout_s:.1f} s")

    async def receipts(self, question: GetReceipts, timeout_s: float) -> list[SignedWindow]:
        """The receipts that it signs, all of them.

        Raises:
            HopLost: the hop is gone.
            DeadlineExceeded: it did not reply in time.
            NotAllowed: it gives none; says why.
            RemoteProtocolError: it gives other windows than those that were asked for.
        """
        found: list[SignedWindow] = []
        count, until = windows(question.tokens), trio.current_time() + timeout_s
        while len(found) < count:
            asked = msgspec.structs.replace(question, first=len(found))
            reply = await self.ask(asked, seconds_left(until))
            if not isinstance(reply, Receipts) or reply.refused:
                why = reply.refused if isinstance(reply, Receipts) else "it answers with something else"
                raise NotAllowed(why)
            if reply.first != asked.first or not 0 < len(reply.windows) <= count - len(found):
                raise RemoteProtocolError(f"{len(reply.windows)} receipts from window {reply.first} on")
            found += reply.windows
        return found

    async def commitment(self, question: GetReceipts, timeout_s: float) -> bytes:
        """What it says of its receipts before it shows any. Raises as :meth:`receipts`."""
        reply = await self.ask(msgspec.structs.replace(question, commit=True), timeout_s)
        if not isinstance(reply, Receipts) or reply.refused:
            raise NotAllowed(reply.refused if isinstance(reply, Receipts) else "it answers something else")
        if reply.windows or not reply.commitment:
            raise NotAllowed("its version of Shoal commits to nothing", check="let it be brought up to date")
        return reply.commitment

    async def sent_rows(
        self, session: bytes, tokens: int, row_bytes: int, timeout_s: float, first: int = 0
    ) -> list[bytes]:
        """The rows that it says it has sent on for ``tokens`` positions, each by itself.

        Args:
            first: the position of the first of them.

        Raises:
            HopLost: the hop is gone.
            DeadlineExceeded: it did not reply in time.
            NotAllowed: it shows none; says why.
            RemoteProtocolError: it shows other positions than those that were asked for, or rows of another
                size.
        """
        found: list[bytes] = []
        until = trio.current_time() + timeout_s
        while len(found) < tokens:
            asked = Reveal(session, first + len(found), tokens - len(found))
            reply = await self.ask(asked, seconds_left(until))
            if not isinstance(reply, Revealed) or reply.refused:
                why = reply.refused if isinstance(reply, Revealed) else "it answers with something else"
                raise NotAllowed(why)
            fits = reply.size == reply.rows * row_bytes and 0 < reply.rows <= asked.tokens
            if reply.first != asked.first or not fits:
                raise RemoteProtocolError(
                    f"{reply.rows} rows of {reply.size} bytes from position {reply.first} on"
                )
            payload, self._payload = self._payload, b""
            found += [payload[at : at + row_bytes] for at in range(0, len(payload), row_bytes)]
        return found

    async def prove(self, question: Prove, payload: bytes, timeout_s: float) -> bytes:
        """What it shows of a window, once it has committed to it.

        Raises:
            HopLost: the hop is gone.
            DeadlineExceeded: it did not reply in time.
            NotAllowed: it proves nothing; says why.
            Busy: it has no time or no room for it.
            RemoteProtocolError: it answers about something else.
        """
        reply = await self.ask(question, timeout_s, payload)
        if isinstance(reply, Proved) and reply.busy:
            raise Busy(reply.refused)
        if not isinstance(reply, Proved) or reply.refused:
            raise NotAllowed(reply.refused if isinstance(reply, Proved) else "it answers something else")
        if (reply.window, reply.block) != (question.window, question.block):
            raise RemoteProtocolError(f"a proof of window {reply.window} and block {reply.block}")
        found, self._payload = self._payload, b""
        return found

    def replied(self, message: HopReply, payload: bytes = b"") -> None:
        """Take a reply in.

        Raises:
            RemoteProtocolError: it answers nothing that was asked.
        """
        if self._owed and type(message) in _FITS[self._owed[0]]:
            self._owed.popleft()
            return  # it comes too late
        if self.asked is None:
            return
        if type(message) not in _FITS[type(self.asked)]:
            raise RemoteProtocolError(
                f"a {type(message).__name__} to a question of the kind {type(self.asked).__name__}"
            )
        self._reply, self._payload = message, payload
        self._replied.set()

    def lose(self, reason: str, *, contested: bool = False) -> None:
        """The hop is gone: whoever waits for its reply hears of it."""
        self.lost = self.lost or reason
        self.contested = contested
        self.open = False
        self._replied.set()
