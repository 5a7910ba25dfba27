"""The members of a run: found, spoken with, and heard."""

from __future__ import annotations

import logging
import math
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio
from msgspec import structs

from shoal.errors import ChannelClosed, DeadlineExceeded, RemoteProtocolError, ShoalError
from shoal.net.channel import Channel
from shoal.net.fair_rate import FairRate
from shoal.net.identity import verify
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.swarm.clock import Clock
from shoal.tasks import ends_alone
from shoal.training.federated.board import RunBoard
from shoal.training.federated.outer import SharedState
from shoal.training.federated.statements import (
    MemberCard,
    MemberStanding,
    RoundPlan,
    Said,
    read_statement,
    sign_statement,
)
from shoal.types import PeerAddress, PeerId
from shoal.wire.federating import (
    FederatedStatement,
    FederatingMessage,
    RunWanted,
    SecretList,
    SecretShare,
    SecretShown,
    StateGiven,
    StateNotGiven,
    StateWanted,
    UpdatePart,
)
from shoal.wire.framing import Payload
from shoal.wire.messages import Message

REACH_S = 10.0
"""How long a member is tried to be reached."""
SPREAD_S = 5.0
"""How often another member is asked what it knows."""
PROVIDE_S = 600.0
FIND_S = 10.0
CHECKED_PER_S = 100
CHECKED_AT_ONCE = 1024
HOLDERS_IN_TIME = 3
"""Of those who say to have the adapter, at least so many are asked."""
STATES_AT_ONCE = 2
"""Members to whom the adapter is being sent."""
TELLING_AT_ONCE = 4
"""Members that are being told what is known of the run."""

log = logging.getLogger(__name__)


class RunPeers:
    """The other members of a run, as one member knows them. ``run`` must be running.

    Args:
        terms: the run's signed terms, as they are passed on.
        state: the shared state of a digest, if it is still here.
    """

    def __init__(
        self,
        network: Network,
        clock: Clock,
        board: RunBoard,
        terms: bytes,
        state: Callable[[bytes], SharedState | None],
    ) -> None:
        self.board = board
        self._network = network
        self._clock = clock
        self._terms = terms
        self._state = state
        self._news = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._checked = FairRate(CHECKED_PER_S, CHECKED_AT_ONCE)
        self._giving: set[PeerId] = set()
        self._telling: set[PeerId] = set()
        self._unheard: defaultdict[PeerId, set[trio.Event]] = defaultdict(set)
        """Of each statement that is on its way to a member, what is set once it has come or cannot: parts
        wait for those before them, which they would overtake."""
        self._wanted: dict[int, tuple[Channel, trio.Event, list[bytes]]] = {}
        self._numbers = 0
        self._said = 0
        """The largest number of a card or standing of this member, of an earlier process of it, too."""
        self._renewed = -math.inf
        self._pool = ChannelPool(
            network,
            self._handle,
            self._lost,
            known=lambda peer: peer in board.cards,
            held=lambda channel: channel.peer in board.cards,
            where=self._where,
        )

    @property
    def sent(self) -> int:
        """Bytes over all channels of the run so far."""
        return self._pool.sent

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear the members and be found by them until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._accept)
            self.introduce()
            nursery.start_soon(self._provide)
            nursery.start_soon(self._spread)
            nursery.start_soon(self._renew)
            task_status.started()

    async def _accept(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._pool.run(accept=True, task_status=task_status)
        finally:
            # Before the nursery is closed, which it is once all in it have ended: who posts then starts none.
            self._nursery = None

    def introduce(self) -> None:
        """Tell all members where we are."""
        address = self._network.address
        card = MemberCard(
            self.board.run,
            self._network.peer,
            address.libp2p[:16],
            address.direct[:16],
            self.next_number(),
        )
        self.say(card)

    def next_number(self) -> int:
        """Of this member's next card or standing: above all before, also where the clock was set back."""
        self._said = max(self._said + 1, round(self._clock.wall() * 1000))
        return self._said

    def say(self, statement: Said) -> None:
        """Sign a statement, keep it, and have it sent to every member."""
        raw = sign_statement(statement, self._network.sign)
        self._take(statement, raw)
        self._tell_others(self.board.own, raw)

    def _tell_others(self, author: PeerId, raw: bytes) -> None:
        """Send a statement to every member but its author."""
        message = FederatedStatement(self.board.run, raw)
        for peer in list(self.board.cards):
            if peer not in (author, self.board.own) and self._nursery is not None:
                heard = trio.Event()
                self._unheard[peer].add(heard)
                self._nursery.start_soon(self._tell, peer, message, heard)

    async def send(self, peer: PeerId, message: Message, payload: Payload = b"") -> None:
        """Send to a member, once the way to it has room.

        Raises:
            ChannelClosed: it cannot be reached.
            ShoalError: it refuses us, or is too old.
        """
        card = self.board.cards.get(peer)
        if card is None:
            raise ChannelClosed(f"{peer} is not known here")
        channel = await self._pool.get(card.address(), deadline_s=REACH_S)
        await channel.send(message, payload)

    def post(self, peer: PeerId, message: Message, payload: Payload, until: float) -> None:
        """Send to a member beside all else, behind every statement so far, if it gets through until a moment
        of trio's clock."""
        if self._nursery is not None:
            before = tuple(self._unheard[peer])
            self._nursery.start_soon(self._post, peer, message, payload, until, before)

    async def _post(
        self, peer: PeerId, message: Message, payload: Payload, until: float, before: tuple[trio.Event, ...]
    ) -> None:
        try:
            with trio.move_on_at(until):
                for heard in before:
                    await heard.wait()
                await self.send(peer, message, payload)
        except ShoalError as error:
            log.info("%s did not get its %s: %s", peer, type(message).__name__, error.message)

    async def meet(self, address: PeerAddress) -> None:
        """Ask a peer what it knows of the run. Raises ShoalError: it cannot be asked."""
        channel = await self._pool.get(address, deadline_s=REACH_S)
        await channel.send(RunWanted(self.board.run))

    async def find(self) -> None:
        """Ask the DHT who takes part, and each of them what it knows. Nobody may be found."""
        with suppress(ChannelClosed, DeadlineExceeded):
            found = await self._network.find_providers(self.board.run, deadline_s=FIND_S)
            for address in found:
                if address.peer != self._network.peer and address.peer not in self.board.cards:
                    with suppress(ShoalError):  # one that is gone is no fault of ours
                        await self.meet(address)

    async def wait(self, until: float, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds of what is heard, or a moment of trio's clock. Whether it does."""
        while not condition() and trio.current_time() < until:
            await self.wait_news(until)
        return condition()

    async def wait_news(self, until: float) -> None:
        """Wait until anything new is heard, or that moment."""
        with trio.move_on_at(until):
            await self._news.wait()

    async def fetch_state(self, digest: bytes, size: int, within_s: float) -> SharedState | None:
        """The shared state with this digest, from one of those who say that they have it.

        Args:
            within_s: for all of them together.

        Returns:
            ``None`` where nobody gives it in time.
        """
        until = trio.current_time() + within_s
        standings = self.board.standings.items()
        holders = [peer for peer, said in standings if said.state == digest and peer != self.board.own]
        random.shuffle(holders)
        for asked, peer in enumerate(holders):
            left_s = until - trio.current_time()
            if left_s <= 0:
                break
            # One that says nothing does not take all the time away from the next ones.
            share_s = left_s / min(HOLDERS_IN_TIME, len(holders) - asked)
            with trio.move_on_after(share_s), suppress(ShoalError):
                payload = await self._ask_state(peer, digest)
                state = SharedState.read(payload, size) if payload else None
                if state is not None and state.digest == digest:
                    return state
            log.info("%s did not give the adapter that it says it has", peer)
        return None

    async def _ask_state(self, peer: PeerId, digest: bytes) -> bytes:
        card = self.board.cards.get(peer)
        if card is None:
            raise ChannelClosed(f"{peer} is not known here any more")
        channel = await self._pool.get(card.address(), deadline_s=REACH_S)
        self._numbers += 1
        number = self._numbers
        answered, found = trio.Event(), list[bytes]()
        self._wanted[number] = (channel, answered, found)
        try:
            await channel.send(StateWanted(self.board.run, number, digest))
            await answered.wait()
        finally:
            del self._wanted[number]
        return found[0] if found else b""

    def note(self) -> None:
        """Wake whoever waits for something of the board."""
        self._news.set()
        self._news = trio.Event()

    def _where(self, peer: PeerId) -> PeerAddress | None:
        card = self.board.cards.get(peer)
        return card.address() if card is not None else None

    async def _tell(self, peer: PeerId, message: FederatedStatement, heard: trio.Event) -> None:
        try:
            await self.send(peer, message)
        except ShoalError as error:
            log.info("%s was not told: %s", peer, error.message)
            self._miss(peer)
        finally:
            self._unheard[peer].discard(heard)
            heard.set()

    def _miss(self, peer: PeerId) -> None:
        if peer in self.board.cards and peer not in self.board.gone:
            self.board.gone.add(peer)
            self.note()

    def _lost(self, channel: Channel, reason: str) -> None:
        for asked, answered, _ in self._wanted.values():
            if asked is channel:
                answered.set()
        if not any(other.peer == channel.peer and not other.closed for other in self._pool.all()):
            self._miss(channel.peer)

    async def _handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        if isinstance(message, FederatingMessage):
            if message.run != self.board.run:
                return  # of another run, which its peer may take part in as well
            self.board.gone.discard(channel.peer)
        match message:
            case RunWanted():
                self._begin(self._telling, TELLING_AT_ONCE, channel, lambda: self._tell_all(channel))
            case FederatedStatement(body=body):
                self._hear(channel.peer, body)
            case UpdatePart():
                if self.board.take_part(channel.peer, message, payload):
                    self.note()
            case SecretShare() | SecretList() | SecretShown():
                if self.board.take_secret(channel.peer, message):
                    self.note()
            case StateWanted(number=number, state=digest):
                giving = self._begin(
                    self._giving, STATES_AT_ONCE, channel, lambda: self._give(channel, number, digest)
                )
                if not giving:
                    with suppress(ChannelClosed):
                        channel.reply(StateNotGiven(self.board.run, number))
            case StateGiven() | StateNotGiven():
                self._take_state(channel, message, payload)
            case _:
                raise RemoteProtocolError(f"a {type(message).__name__} between members of a federated run")

    def _begin(
        self, busy: set[PeerId], most: int, channel: Channel, task: Callable[[], Awaitable[None]]
    ) -> bool:
        """Do for a peer what takes long, once at a time, and for few at a time. Whether it is done."""
        if self._nursery is None or channel.peer in busy or len(busy) >= most:
            return False
        busy.add(channel.peer)

        async def do() -> None:
            try:
                with ends_alone(log, f"what {channel.peer} asked for"), suppress(ChannelClosed):
                    with trio.move_on_after(REACH_S * 6):
                        await task()
            finally:
                busy.discard(channel.peer)

        self._nursery.start_soon(do)
        return True

    async def _tell_all(self, channel: Channel) -> None:
        for raw in [self._terms, *self.board.statements()]:
            await channel.send(FederatedStatement(self.board.run, raw))

    async def _give(self, channel: Channel, number: int, digest: bytes) -> None:
        state = self._state(digest)
        if state is None:
            await channel.send(StateNotGiven(self.board.run, number))
        else:
            payload = state.payload()
            await channel.send(StateGiven(self.board.run, number, len(payload)), payload)

    def _take_state(self, channel: Channel, message: StateGiven | StateNotGiven, payload: bytes) -> None:
        """Raises RemoteProtocolError: it answers a question that another peer was asked."""
        if message.number not in self._wanted:
            return  # it comes too late
        asked, answered, found = self._wanted[message.number]
        if asked is not channel:
            raise RemoteProtocolError("an adapter that another peer was asked for")
        if isinstance(message, StateGiven):
            found.append(payload)
        answered.set()

    def _hear(self, teller: PeerId, raw: bytes) -> None:
        """Take a statement in. Raises RemoteProtocolError: it is none."""
        if raw == self._terms or raw in self.board.raw.values():
            return
        if not self._checked.take(teller, trio.current_time()):
            return  # the next exchange brings it
        statement = read_statement(raw, verify)
        if statement.run != self.board.run:
            return
        if statement.peer == self.board.own:
            self._go_above(statement)
        else:
            self._take(statement, raw)

    def _go_above(self, statement: Said) -> None:
        """Say our card and standing once more where others have one of us with a larger number."""
        number = statement.number if isinstance(statement, MemberCard | MemberStanding) else 0
        if number <= self._said:
            return
        self._said = number
        if trio.current_time() < self._renewed + SPREAD_S:
            return  # another process has our identity; the others bring it up again
        self._renewed = trio.current_time()
        for own in (self.board.cards.get(self.board.own), self.board.standings.get(self.board.own)):
            if own is not None:
                self.say(structs.replace(own, number=self.next_number()))

    def _take(self, statement: Said, raw: bytes) -> None:
        newcomer = isinstance(statement, MemberCard) and statement.peer not in self.board.cards
        if not self.board.take(statement, raw, trio.current_time()):
            return
        self.note()
        peer = PeerId(statement.peer)
        if self._nursery is None or peer == self.board.own:
            return
        if newcomer:
            self._nursery.start_soon(self._greet, peer)
            # Two who come at the same time know of each other only by those who were there before.
            self._tell_others(peer, raw)
        elif isinstance(statement, RoundPlan) and self.board.unknown(statement):
            self.post(peer, RunWanted(self.board.run), b"", trio.current_time() + REACH_S)

    async def _greet(self, peer: PeerId) -> None:
        """Tell a newcomer who we are and how far, and hear the same of it."""
        with suppress(ShoalError):  # who cannot be reached is asked again later
            for what in ("card", "standing"):
                raw = self.board.raw.get((self.board.own, what))
                if raw is not None:
                    await self.send(peer, FederatedStatement(self.board.run, raw))

    async def _provide(self) -> None:
        while True:
            with suppress(ChannelClosed, DeadlineExceeded):  # the next round tries again
                await self._network.provide(self.board.run)
            await trio.sleep(PROVIDE_S if len(self.board.cards) > 1 else SPREAD_S)

    async def _spread(self) -> None:
        """Ask one member after another what it knows; while none is known, the DHT."""
        while True:
            others = [peer for peer in self.board.cards if peer != self.board.own]
            if not others:
                await self.find()
            else:
                with suppress(ShoalError):  # it may be gone for good
                    await self.send(random.choice(others), RunWanted(self.board.run))
            await trio.sleep(SPREAD_S * random.uniform(0.8, 1.2))

    async def _renew(self) -> None:
        while True:
            await self._network.wait_moved()
            self.introduce()
            await trio.sleep(SPREAD_S)
