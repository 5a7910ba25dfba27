"""Members of the lab's swarm that lie all the while: they blame, stall and refuse."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import cycle, islice

import trio

from shoal.client.swarm import Swarm
from shoal.errors import DeadlineExceeded
from shoal.net.identity import Identity
from shoal.swarm.join import join_swarm
from shoal.testing.lab.nodes import LabSwarm
from shoal.testing.liar import Liar, calls_next_gone, lying, opens, refuses

KINDS = (calls_next_gone, opens, refuses)
"""One blames the next hop, one swallows steps, one has no room: in turn, as many as are asked for."""
HEARD_WITHIN_S = 15.0


@asynccontextmanager
async def liars_beside(lab: LabSwarm, client: Swarm, count: int) -> AsyncGenerator[tuple[Liar, ...]]:
    """So many liars, of each of whom the client has heard. They announce the first half of the model.

    Raises:
        DeadlineExceeded: the client did not hear of them.
    """
    like = next(a.served for a in client.announcements() if a.served is not None)
    claim = {"start": 0, "end": max(1, like.n_blocks // 2)}
    async with AsyncExitStack() as stack:
        liars: list[Liar] = []
        for kind in islice(cycle(KINDS), count):
            joining = join_swarm(lab.client_settings, lab.membership, Identity.ephemeral(), listen=True)
            network, member = await stack.enter_async_context(joining)
            liars.append(await stack.enter_async_context(lying(network, member, like, kind, **claim)))
        peers = {liar.peer for liar in liars}
        with trio.move_on_after(HEARD_WITHIN_S) as waiting:
            while not peers <= {a.peer for a in client.announcements()}:
                await client.member.wait_changed()
        if waiting.cancelled_caught:
            raise DeadlineExceeded(f"the client did not hear of the liars within {HEARD_WITHIN_S:.0f} s")
        yield tuple(liars)
