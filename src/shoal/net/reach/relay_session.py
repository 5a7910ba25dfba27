"""Our end of a control connection to a relay: a place that we hold there, and calls both ways."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from shoal.errors import ChannelClosed, RemoteProtocolError
from shoal.net.reach.control import (
    RENEW_S,
    UNANSWERED_S,
    Call,
    CallAnswer,
    CallKind,
    ControlLink,
    ControlMessage,
    RelayRefusal,
    Reserve,
    Reserved,
    Welcome,
)
from shoal.tasks import ends_alone
from shoal.types import NatKind, PeerId

WELCOME_WITHIN_S = 5.0
HEARD_LATELY_S = 0.5
"""A relay that has spoken so lately is not doubted."""
CALL_TAKES_S = 1.5
"""Nor one over which a call of ours was made so lately."""
DOUBTED_S = 0.5
"""How long one that is doubted may take to answer."""

log = logging.getLogger(__name__)

OnCall = Callable[["RelaySession", Call], Awaitable[None]]
"""Told of each call that is made to us. It must return soon: the next message waits for it."""


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """A relay, and its direct carrier's port."""

    peer: PeerId
    host: str
    port: int


@dataclass
class _Pending:
    """A call of ours, or a wish for a place, that has no answer yet."""

    done: trio.Event
    answer: CallAnswer | None = None
    why: str = ""


class RelaySession:
    """One relay, as long as ``run`` runs."""

    def __init__(
        self, link: ControlLink, address: RelayAddress, on_call: OnCall, local: tuple[str, int] | None = None
    ) -> None:
        self.address = address
        self.local = local
        """The host and port that it was dialled from, and that ``seen`` tells of."""
        self.seen = ""
        """The multiaddr at which the relay sees us."""
        self.relays = False
        """Whether it gives places and takes calls."""
        self.reserved = False
        self.used_at = trio.current_time()
        """When we last wanted something of it."""
        self.closed = trio.Event()
        self._heard = self.used_at
        self._link = link
        self._on_call = on_call
        self._welcomed = trio.Event()
        self._reserving: _Pending | None = None
        self._calls: dict[int, _Pending] = {}
        self._number = 0
        self._scope = trio.CancelScope()
        self._doubted = trio.Event()

    async def run(self) -> None:
        """Hear the relay until the connection ends, for whatever reason."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for task in (self._link.pump, self._renew, self._hear):
                        nursery.start_soon(self._guard, task)
        finally:
            self._end()
            with trio.move_on_after(2, shield=True):
                await self._link.aclose()

    @property
    def spare(self) -> bool:
        """Whether nothing is lost if it ends: no place is held there, and no call of ours is under way."""
        return not (self.reserved or self._reserving or self._calls)

    def close(self) -> None:
        """End it, from any task."""
        self._scope.cancel()

    async def wait_welcome(self) -> None:
        """Wait until the relay has told how it sees us.

        Raises:
            ChannelClosed: it hung up, or said nothing in time.
        """
        with trio.move_on_after(WELCOME_WITHIN_S):
            await self._welcomed.wait()
        if self.closed.is_set() or not self._welcomed.is_set():
            self.close()
            raise ChannelClosed(f"the relay {self.address.peer} does not answer")

    async def reserve(self, deadline_s: float) -> None:
        """Hold a place there from now on.

        Raises:
            ChannelClosed: the relay gives none, or does not answer in time.
        """
        pending = self._reserving = _Pending(trio.Event())
        try:
            self._link.send(Reserve())
            with trio.move_on_after(deadline_s):
                await pending.done.wait()
        finally:
            self._reserving = None
        if not self.reserved:
            raise ChannelClosed(
                f"no place at the relay {self.address.peer}: {pending.why or 'it does not answer'}"
            )

    async def call(
        self, peer: PeerId, kind: CallKind, token: bytes, addresses: tuple[str, ...], nat: NatKind
    ) -> CallAnswer:
        """Call a peer that holds a place at this relay. Its caller sees to the deadline.

        Raises:
            ChannelClosed: the relay or the peer does not want to, or is gone.
        """
        if self.closed.is_set():
            raise ChannelClosed(f"the relay {self.address.peer} has hung up")
        self.used_at = trio.current_time()
        self._number += 1
        number, pending = self._number, _Pending(trio.Event())
        self._calls[number] = pending
        try:
            self._link.send(Call(number, peer, kind, token, addresses, nat))
            await pending.done.wait()
        finally:
            self._calls.pop(number, None)
        if pending.answer is None:
            raise ChannelClosed(f"{peer} cannot be called over {self.address.peer}: {pending.why}")
        return pending.answer

    def answer(self, call: int, addresses: tuple[str, ...]) -> None:
        """Do as a call of another asks. Raises ChannelClosed: the relay has hung up."""
        self._link.send(CallAnswer(call, addresses))

    def refuse(self, call: int, why: str) -> None:
        """Do not. Raises as :meth:`answer`."""
        self._link.send(RelayRefusal(call, why))

    async def _guard(self, task: Callable[[], Awaitable[None]]) -> None:
        with ends_alone(log, f"the session with the relay {self.address.peer}"):
            try:
                await task()
            except (ChannelClosed, RemoteProtocolError) as error:
                log.debug("the relay %s: %s", self.address.peer, error.message)
        self._scope.cancel()

    def doubt(self) -> None:
        """Look whether it still answers, as some peer does not: our router may have forgotten everybody.

        Where nobody else needs the session it is given up at once: to open another is soon done.
        """
        # A call takes a while, and what others do must not end it.
        lately_s = CALL_TAKES_S if self._calls else HEARD_LATELY_S
        if trio.current_time() - max(self._heard, self.used_at if self._calls else 0.0) < lately_s:
            return
        if self.reserved:
            self._doubted.set()
        else:
            self.close()

    async def _renew(self) -> None:
        while True:
            with trio.move_on_after(RENEW_S):
                await self._doubted.wait()
            doubted, self._doubted = self._doubted.is_set(), trio.Event()
            asked = trio.current_time()
            if self.reserved and asked - self._heard > UNANSWERED_S:
                raise ChannelClosed(f"nothing heard for {UNANSWERED_S:.0f} s")
            if self.reserved:
                self._link.send(Reserve())
            if self.reserved and doubted:
                await trio.sleep(DOUBTED_S)
                if self._heard < asked:
                    raise ChannelClosed("it does not answer any more")

    async def _hear(self) -> None:
        async for message in self._link.messages():
            await self._take(message)

    async def _take(self, message: ControlMessage) -> None:
        self._heard = trio.current_time()
        match message:
            case Welcome():
                self.seen, self.relays = message.seen, message.relays
                self._welcomed.set()
            case Reserved():
                # Nobody makes us hold a place that we have not asked for, or have given up.
                if self._reserving is not None:
                    self.reserved = True
                    self._settle_reservation()
            case RelayRefusal(call=0):
                # A relay that has become none: whoever looks after our places finds another.
                if self.reserved:
                    raise ChannelClosed(f"it does not keep our place: {message.why}")
                self._settle_reservation(message.why)
            case CallAnswer() | RelayRefusal():
                pending = self._calls.get(message.call)
                if pending is not None:
                    pending.answer = message if isinstance(message, CallAnswer) else None
                    pending.why = message.why if isinstance(message, RelayRefusal) else ""
                    pending.done.set()
            case Call() if self.reserved:
                await self._on_call(self, message)
            case Call():
                self.refuse(message.call, "we hold no place with this relay")
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} is nothing that a relay says")

    def _settle_reservation(self, why: str = "") -> None:
        if self._reserving is not None:
            self._reserving.why = why
            self._reserving.done.set()

    def _end(self) -> None:
        self.closed.set()
        self.reserved = False
        self._welcomed.set()
        self._settle_reservation("it has hung up")
        for pending in self._calls.values():
            pending.why = "the relay has hung up"
            pending.done.set()
