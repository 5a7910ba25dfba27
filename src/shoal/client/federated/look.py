"""A run looked at from outside: its terms, who takes part, and how far each member is."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from shoal.client.federated.run_folder import read_run_terms
from shoal.errors import NotRunning, RemoteProtocolError, ShoalError, UsageError
from shoal.net.channel import Channel
from shoal.net.identity import verify
from shoal.net.network import Network
from shoal.net.pool import ChannelPool
from shoal.training.federated.statements import MemberCard, MemberStanding, read_statement
from shoal.training.federated.terms import FederatedTerms, run_of
from shoal.types import PeerAddress, PeerId
from shoal.wire.federating import MAX_MEMBERS, FederatedStatement, RunWanted
from shoal.wire.messages import Message

FIND_S = 20.0
ASKED_S = 3.0
"""How long a member's answer is listened to, once the terms are there."""
DIAL_S = 5.0


@dataclass
class RunView:
    """What members of a run say."""

    run: bytes
    raw: bytes = b""
    """The signed terms."""
    cards: dict[PeerId, MemberCard] = field(default_factory=dict[PeerId, MemberCard])
    standings: dict[PeerId, MemberStanding] = field(default_factory=dict[PeerId, MemberStanding])

    @property
    def terms(self) -> FederatedTerms:
        """Raises as :func:`read_run_terms`."""
        return read_run_terms(self.raw)

    def take(self, raw: bytes) -> None:
        """Raises RemoteProtocolError: it is no statement."""
        if run_of(raw) == self.run:
            self.raw = raw
            return
        statement = read_statement(raw, verify)
        peer = PeerId(statement.peer)
        if statement.run != self.run or (peer not in self.cards and len(self.cards) >= MAX_MEMBERS):
            return
        match statement:
            case MemberCard():
                self.cards[peer] = statement
            case MemberStanding() if peer in self.cards:
                self.standings[peer] = statement
            case _:
                pass


def read_code(code: str) -> bytes:
    """The run of a code. Raises UsageError: it is none."""
    try:
        run = bytes.fromhex(code.strip())
    except ValueError:
        run = b""
    if len(run) != 32:
        raise UsageError(
            f"{code[:80]!r} is no code of a run",
            check="copy the 64 digits that shoal federate start prints",
        )
    return run


async def look_at_run(
    network: Network, run: bytes, *, within_s: float = FIND_S, listen_s: float = ASKED_S
) -> RunView:
    """Ask members of a run, found in the DHT, what they know.

    Args:
        within_s: until somebody has told the terms.
        listen_s: how long they are listened to after that.

    Raises:
        NotRunning: nobody who takes part is found, or answers.
    """
    view, terms_there = RunView(run), trio.Event()

    async def handle(channel: Channel, message: Message, payload: bytes) -> None:
        if not isinstance(message, FederatedStatement):
            raise RemoteProtocolError(f"a {type(message).__name__} in answer to a question about a run")
        if message.run == run:
            view.take(message.body)
            if view.raw:
                terms_there.set()

    pool = ChannelPool(network, handle, lambda channel, reason: None)

    asked: set[PeerId] = set()

    async def ask(address: PeerAddress) -> None:
        try:
            channel = await pool.get(address, deadline_s=DIAL_S)
            await channel.send(RunWanted(run))
        except ShoalError:  # it may be gone for good, or not be reached this once
            asked.discard(address.peer)

    async def search(nursery: trio.Nursery) -> None:
        while True:
            with suppress(ShoalError):
                for address in await network.find_providers(run, deadline_s=DIAL_S):
                    if address.peer not in asked and address.peer != network.peer:
                        asked.add(address.peer)
                        nursery.start_soon(ask, address)
            await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        await nursery.start(partial(pool.run, accept=False))
        nursery.start_soon(search, nursery)
        with trio.move_on_after(within_s):
            await terms_there.wait()
        if view.raw:
            await trio.sleep(listen_s)
        nursery.cancel_scope.cancel()
    if not view.raw:
        raise NotRunning(
            f"nobody who takes part in run {run.hex()[:16]}… is found",
            check="look whether its starter is running, and whether this machine is in the same swarm",
            next_command="shoal peers",
        )
    return view
