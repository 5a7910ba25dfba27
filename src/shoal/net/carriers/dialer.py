"""Chooses the way to a peer by what works: direct addresses, then a meeting or a circuit, then iroh, then a
libp2p stream.

Ways are tried side by side: each begins when the one before has failed, or has been alone for a while, and
what comes first is taken. A meeting is given longer, for a circuit comes about sooner and is slower for
good.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from shoal.errors import ChannelClosed, NotAllowed
from shoal.net.carriers.calls import Calls
from shoal.net.carriers.direct import DirectCarrier
from shoal.net.carriers.direct_pipe import DirectPipe
from shoal.net.happy_eyeballs import STAGGER_S, first
from shoal.net.network import Pipe
from shoal.net.reach.iroh_addresses import IrohTarget
from shoal.net.reach.ways import Target, relays_of
from shoal.tasks import seconds_left
from shoal.types import NatKind, PeerAddress, PeerId, Way

DIRECT_SHARE = 0.4
"""Share of the deadline after which the libp2p stream is tried."""
RELAYED_SHARE = 0.8
"""The same where the peer has a place at a relay, or iroh: it may take dials of several kinds, and a stream
needs one of them to have worked before."""
ADDRESSES_LIMIT = 8
MEET_ALONE_S = 1.5
"""How long a meeting is awaited before a circuit is begun as well: a few round trips through a relay."""
BEFORE_IROH_S = 1.0
"""How long the last of the other ways is awaited before iroh is tried as well."""
CHEAP_S = 0.5
"""A failure that came sooner is not remembered: to try again costs nothing, and the peer may be back."""
REMEMBERED_S = 60.0
PEERS_KEPT = 1024

OpenStream = Callable[[PeerAddress, float], Awaitable[Pipe]]
DialIroh = Callable[[PeerId, IrohTarget], Awaitable[DirectPipe]]
_Attempt = Callable[[], Awaitable[DirectPipe]]


def plan_ways(
    targets: Sequence[Target],
    *,
    called: bool,
    nat: NatKind,
    worked: Way | None,
    relay: bool = True,
    iroh: IrohTarget | None = None,
) -> list[tuple[Target | IrohTarget | Way, float]]:
    """What is tried in which order, and how long each is alone before the next begins, in seconds. Pure.

    Args:
        called: the peer can be called over a relay.
        nat: our own router, towards this peer.
        worked: the way that led there lately.
        relay: whether a way is wanted, too, that somebody else may be on: a circuit, or iroh.
        iroh: where it is reached over iroh, the last to be tried.
    """
    plan: list[tuple[Target | IrohTarget | Way, float]] = [
        (target, STAGGER_S) for target in targets[:ADDRESSES_LIMIT]
    ]
    if called:
        # At an address that its router gives it, and in IPv6 behind a firewall, most peers take only whom
        # they dial themselves: so the meeting begins together with the dial.
        shut = {target for target in targets if target.way == "mapped" or ":" in target.host}
        plan = [(wanted, 0.0 if wanted in shut else alone_s) for wanted, alone_s in plan]
        meet: tuple[Way, float] = ("reversed" if nat == "none" else "punched", MEET_ALONE_S)
        if worked == "relayed":
            meet = (meet[0], STAGGER_S)
        if worked in ("reversed", "punched"):
            plan.insert(0, meet)
        # Behind a symmetric router a meeting finds only peers with an open door, and those are dialled.
        elif nat != "symmetric":
            plan.append(meet)
        if relay:
            plan.append(("relayed", STAGGER_S))
    if iroh and relay:
        plan[-1:] = [(wanted, BEFORE_IROH_S) for wanted, _ in plan[-1:]]
        plan.append((iroh, STAGGER_S))
    return plan


class Dialer:
    """Opens pipes, and remembers for a while what worked, and to whom we waited in vain."""

    def __init__(
        self,
        direct: DirectCarrier | None,
        calls: Calls | None,
        open_stream: OpenStream,
        dial_iroh: DialIroh | None = None,
    ) -> None:
        self._direct = direct
        self._calls = calls
        self._open_stream = open_stream
        self._dial_iroh = dial_iroh
        self._failed: OrderedDict[tuple[PeerId, tuple[str, ...]], float] = OrderedDict()
        """When we waited in vain for a peer at these addresses; at others it is tried again at once."""
        self._worked: OrderedDict[PeerId, tuple[Way, float]] = OrderedDict()

    async def open(
        self,
        address: PeerAddress,
        targets: Sequence[Target],
        deadline_s: float,
        iroh: IrohTarget | None = None,
    ) -> Pipe:
        """A pipe to the peer.

        Args:
            address: where the peer says that it is; of ``libp2p`` only what may be dialled.
            targets: where its direct carrier is dialled.
            iroh: where it is dialled over iroh, if it is.

        Raises:
            ChannelClosed: no way led there in time.
            NotAllowed: the peer refuses us.
        """
        start = trio.current_time()
        until = start + deadline_s
        called = self._calls is not None and bool(relays_of(address))
        dialled = targets if self._direct is not None else ()
        if (called or dialled or iroh) and not self._failed_lately(address):
            with trio.move_on_after(deadline_s * (RELAYED_SHARE if called or iroh else DIRECT_SHARE)):
                try:
                    return await self._race(address, dialled, called, iroh=iroh)
                except (ChannelClosed, NotAllowed):
                    pass  # the libp2p stream is tried next, and says what is wrong if it fails too
            if trio.current_time() - start > CHEAP_S and not called:
                self._remember_failure(address)
        left = seconds_left(until)
        with trio.move_on_after(left):
            return await self._open_stream(address, left)
        raise ChannelClosed(f"{address.peer} did not answer within {deadline_s:.0f} s")

    async def open_direct(
        self, address: PeerAddress, targets: Sequence[Target], deadline_s: float
    ) -> DirectPipe:
        """A pipe with nobody in the middle. Raises as :meth:`open`."""
        called = self._calls is not None and bool(relays_of(address))
        with trio.move_on_after(deadline_s):
            if self._direct is not None:
                return await self._race(address, targets, called, relay=False)
        raise ChannelClosed(f"{address.peer} is reached by no direct way within {deadline_s:.0f} s")

    async def _race(
        self,
        address: PeerAddress,
        targets: Sequence[Target],
        called: bool,
        *,
        relay: bool = True,
        iroh: IrohTarget | None = None,
    ) -> DirectPipe:
        worked, at = self._worked.get(address.peer, (None, 0.0))
        if trio.current_time() - at > REMEMBERED_S:
            worked = None
        nat: NatKind = self._calls.nat_to(address) if self._calls is not None else "unknown"
        plan = plan_ways(targets, called=called, nat=nat, worked=worked, relay=relay, iroh=iroh)
        attempts = [self._attempt(address, wanted) for wanted, _ in plan]
        pipe = await first(attempts, DirectPipe.aclose, [alone_s for _, alone_s in plan])
        self._worked[address.peer] = (pipe.way, trio.current_time())
        self._worked.move_to_end(address.peer)
        while len(self._worked) > PEERS_KEPT:
            self._worked.popitem(last=False)
        return pipe

    def _attempt(self, address: PeerAddress, wanted: Target | IrohTarget | Way) -> _Attempt:
        if isinstance(wanted, IrohTarget):
            assert self._dial_iroh is not None
            return partial(self._dial_iroh, address.peer, wanted)
        if isinstance(wanted, Target):
            assert self._direct is not None
            return partial(self._direct.dial, wanted.host, wanted.port, address.peer, wanted.way)
        assert self._calls is not None
        return partial(self._calls.join if wanted == "relayed" else self._calls.meet, address)

    def _failed_lately(self, address: PeerAddress) -> bool:
        failed = self._failed.get((address.peer, address.direct), -REMEMBERED_S)
        return trio.current_time() - failed < REMEMBERED_S

    def _remember_failure(self, address: PeerAddress) -> None:
        self._failed[address.peer, address.direct] = trio.current_time()
        while len(self._failed) > PEERS_KEPT:
            self._failed.popitem(last=False)
