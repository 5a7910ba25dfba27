"""Where a node that chooses for itself serves: on joining, and later, when another place has become better.

A node moves without a gap: it says where it is going, loads the new span beside the old one, takes new
sessions there, announces it, and frees the old span when the last session on it has ended.

Two nodes may choose the same place at the same time. So each waits a little once it has said where it goes,
and looks again: then the one with the smaller peer id goes before the other.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial

import trio

from shoal.errors import ShoalError
from shoal.executor.device.device import memory_budget
from shoal.models.checkpoint.sizes import block_bytes
from shoal.models.store.local_model import LocalModel
from shoal.node.node import KV_SHARE, Node, blocks_that_fit, load_served_span
from shoal.node.placing.choice import PlacedModel, choose_place, keeping_peers, reservation, serving_peers
from shoal.planning.level import MANY, look_period_s, looks_at_once
from shoal.planning.placement import Move, choose_move, uncovered_by
from shoal.planning.throughput import ServingPeer
from shoal.swarm.announcement import carried_tokens_s
from shoal.swarm.audit_book import AuditBook
from shoal.swarm.member import Member
from shoal.types import Numerics, PeerId, Span, gaps

LOOK_EVERY_S = 60.0
"""How often a node asks itself whether to move, by chance half or one and a half of it."""
SETTLE_S = 3.0
"""How long a node waits to hear of others that are going too: longer than an announcement takes."""
HOLES_EVERY_S = 10.0
"""How often it sees whether every block is served."""
REST_S = 600.0
"""For so long after a move it does not move again: what it cost should be earned first."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Others:
    """Who else serves the model."""

    placed: list[ServingPeer]
    """Those that are going, where they will be."""
    keeping: list[ServingPeer]
    """Those alone who serve now where they are to stay."""
    peers: int
    """How many serve it, as far as is known; of a large swarm more than are placed here."""


def pick_span(
    model: LocalModel, numerics: Numerics, memory: int, member: Member, liars: Collection[PeerId] = ()
) -> Span:
    """The span of ``model`` that the swarm lacks most and that fits. Raises as :func:`choose_place`.

    Args:
        liars: who was found to compute something else.
    """
    placed = PlacedModel(model.shape, numerics, block_bytes(model, numerics.format))
    return choose_place(placed, int(memory * (1 - KV_SHARE)), member, liars)


async def reserve(
    model: LocalModel, numerics: Numerics, span: Span, member: Member, liars: Collection[PeerId] = ()
) -> bool:
    """Say which span a node that joins a large swarm will serve, before it loads; whether that was said.

    Of a crowd that comes at once each then sees where the others go. In a small swarm clients wait for blocks
    that nobody serves; they must not take them for served.
    """
    placed = PlacedModel(model.shape, numerics, ())
    if len(serving_peers(placed, member, liars=liars)) < MANY:
        return False
    member.served = partial(reservation, placed, span)
    await member.announce()
    return True


async def keep_place(
    node: Node,
    moved: Callable[[Move], None],
    *,
    look_every_s: float = LOOK_EVERY_S,
    settle_s: float = SETTLE_S,
    rest_s: float = REST_S,
) -> None:
    """Move the node whenever that pays, until cancelled. It looks by chance, so that no two move at once.

    Args:
        moved: told of each move, when new sessions go to the new span.
    """
    chance = random.Random()
    while True:
        node.fits = _fits(node)
        await _wait_look(node, look_every_s, chance)
        move = await _choose(node, await _look_around(node))
        if move is None:
            continue
        try:
            if not await _claim(node, move, settle_s):
                continue
            await _move(node, move, moved)
        except ShoalError as error:
            log.warning("staying at blocks %s: %s", node.span, error.message)
            await _stay(node)
        await trio.sleep(rest_s)


async def _wait_look(node: Node, every_s: float, chance: random.Random) -> None:
    """Wait until it is time to look again; less long where a block stays without anybody who serves it."""
    others = await _look_around(node)
    until = trio.current_time() + look_period_s(every_s, others.peers) * chance.uniform(0.5, 1.5)
    holes = False
    while (left := until - trio.current_time()) > 0:
        await trio.sleep(min(left, HOLES_EVERY_S * chance.uniform(0.8, 1.2)))
        others = await _look_around(node)
        spans = [peer.span for peer in others.placed]
        before, holes = holes, bool(gaps([*spans, node.span], node.model.shape.n_blocks))
        # One that has just gone may be back in a moment; of the others not all are to go there.
        if before and holes and looks_at_once(others.peers, chance):
            return


async def _claim(node: Node, move: Move, settle_s: float) -> bool:
    """Say where the node is going; whether it still should be when others have said where they are."""
    node.going = move.span
    await node.member.announce()
    await trio.sleep(settle_s)
    again = await _choose(node, await _look_around(node, before=node.member.network.peer), move.span)
    if again is not None and again.span == move.span:
        return True
    await _stay(node)
    return False


async def _stay(node: Node) -> None:
    """Go nowhere, and say so: others count a node where it is going."""
    node.going = None
    await node.member.announce()


async def _choose(node: Node, others: _Others, claimed: Span | None = None) -> Move | None:
    if not node.fits or not node.server.admits or node.server.share < 1:
        return None  # its owner wants the machine: no time to load another span
    here = ServingPeer(node.span, node.loaded.speed.blocks_s, node.fits, carried_tokens_s(node.served()))
    choose = partial(
        choose_move,
        others.placed,
        here,
        node.model.shape.n_blocks,
        peers=others.peers,
        claimed=claimed,
        keeping=others.keeping,
    )
    # Pure, so it may run on a thread: it weighs all spans against all nodes, and channels must not wait.
    return await trio.to_thread.run_sync(choose, abandon_on_cancel=True)


async def _move(node: Node, move: Move, moved: Callable[[Move], None]) -> None:
    log.info("moving from blocks %s to %s: %s", node.span, move.span, move.why)
    await node.weights.fetch_span(node.model, move.span)
    old = node.loaded
    # The old span serves on meanwhile: that is why there must be room for both.
    new = await load_served_span(
        node.model,
        move.span,
        old.engine.format,
        node.settings,
        node.device,
        _room(node),
        node.adapters,
        node.measure,
    )
    # Loading takes a while, in which those may have gone who serve the old span, too.
    if left := uncovered_by((await _look_around(node)).keeping, node.span, move.span):
        new.thread.close()
        log.warning("staying at blocks %s: nobody else serves %s any more", node.span, left[0])
        await _stay(node)
        return
    node.loaded, node.going = new, None
    node.server.take_over(new.engine, new.span, new.speed)
    try:
        await node.member.announce()
        moved(move)
        # Sessions end where they are: their caches cannot move.
        await node.server.wait_unused(old.engine)
    finally:
        old.thread.close()


async def _look_around(node: Node, *, before: PeerId | None = None) -> _Others:
    """Who else serves the model, of whom this machine's clients have not found out."""
    liars = await trio.to_thread.run_sync(AuditBook(node.settings.paths.audits).liars, time.time())
    # Those of other exactness, too: a route that promises none may go over all of them.
    model = PlacedModel(node.model.shape, node.engine.numerics.loose, ())
    placed = serving_peers(model, node.member, before=before, liars=liars)
    keeping = keeping_peers(model, node.member, before=before, liars=liars)
    size = node.member.size
    peers = size.of(node.model.shape.digest) if size.partial else 0
    return _Others(placed, keeping, max(len(placed), peers))


def _room(node: Node) -> int:
    """Bytes for another span beside the one that is loaded: what the user allows, else what is free."""
    allowed = node.settings.memory
    runner = node.engine.runner
    used = runner.tensor_bytes + round(node.engine.tokens * runner.kv_bytes)
    return max(0, allowed - used) if allowed else memory_budget(node.settings, node.device)


def _fits(node: Node) -> int:
    """Blocks that the node could serve elsewhere; 0 where there is no room for two spans at a time."""
    if node.settings.parallel > 1:
        return 0
    try:
        return min(len(node.span), blocks_that_fit(node.model, node.engine.format, _room(node)))
    except ShoalError:
        return 0
