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
from functools import partial

import trio

from shoal.errors import ShoalError
from shoal.executor.device.device import memory_budget
from shoal.models.store.local_model import LocalModel
from shoal.node.node import Node, blocks_that_fit, load_served_span
from shoal.routing.placement import Move, choose_move, choose_span
from shoal.routing.throughput import ServingPeer
from shoal.swarm.announcement import numerics_of
from shoal.swarm.audit_book import AuditBook
from shoal.swarm.member import Member
from shoal.types import Format, Kv, Numerics, PeerId, Span

LOOK_EVERY_S = 60.0
"""How often a node asks itself whether to move, by chance half or one and a half of it."""
SETTLE_S = 3.0
"""How long a node waits to hear of others that are going too: longer than an announcement takes."""
REST_S = 600.0
"""For so long after a move it does not move again: what it cost should be earned first."""

log = logging.getLogger(__name__)


def pick_span(
    model: LocalModel,
    format: Format,
    memory: int,
    member: Member,
    kv: Kv = "auto",
    liars: Collection[PeerId] = (),
) -> Span:
    """The span of ``model`` that the swarm lacks most and that fits. Raises as ``blocks_that_fit``.

    Args:
        liars: who was found to compute something else.
    """
    fits = blocks_that_fit(model, format, memory)
    return choose_span(_others(model, format, kv, member, liars=liars), model.shape.n_blocks, fits)


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
        await trio.sleep(look_every_s * chance.uniform(0.5, 1.5))
        move = await _choose(node, await _others_of(node))
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


async def _claim(node: Node, move: Move, settle_s: float) -> bool:
    """Say where the node is going; whether it still should be when others have said where they are."""
    node.going = move.span
    await node.member.announce()
    await trio.sleep(settle_s)
    first = await _others_of(node, before=node.member.network.peer)
    again = await _choose(node, first)
    if again is not None and again.span == move.span:
        return True
    await _stay(node)
    return False


async def _stay(node: Node) -> None:
    """Go nowhere, and say so: others count a node where it is going."""
    node.going = None
    await node.member.announce()


async def _choose(node: Node, others: list[ServingPeer]) -> Move | None:
    if not node.fits or not node.server.admits or node.server.share < 1:
        return None  # its owner wants the machine: no time to load another span
    here = ServingPeer(node.span, node.loaded.speed.blocks_s, node.fits)
    choose = partial(choose_move, others, here, node.model.shape.n_blocks)
    # Pure, so it may run on a thread: it weighs all spans against all nodes, and channels must not wait.
    return await trio.to_thread.run_sync(choose, abandon_on_cancel=True)


async def _move(node: Node, move: Move, moved: Callable[[Move], None]) -> None:
    log.info("moving from blocks %s to %s: %s", node.span, move.span, move.why)
    await node.weights.fetch_span(node.model, move.span)
    old = node.loaded
    # The old span serves on meanwhile: that is why there must be room for both.
    new = await load_served_span(
        node.model, move.span, old.engine.format, node.settings, node.device, _room(node)
    )
    node.loaded, node.going = new, None
    node.server.take_over(new.engine, new.span, new.speed)
    try:
        await node.member.announce()
        moved(move)
        # Sessions end where they are: their caches cannot move.
        await node.server.wait_unused(old.engine)
    finally:
        old.thread.close()


async def _others_of(node: Node, before: PeerId | None = None) -> list[ServingPeer]:
    """As :func:`_others`, of whom this machine's clients have not found out."""
    liars = await trio.to_thread.run_sync(AuditBook(node.settings.paths.audits).liars, time.time())
    kv, member = node.settings.kv, node.member
    return _others(node.model, node.engine.format, kv, member, before=before, liars=liars)


def _others(
    model: LocalModel,
    format: Format,
    kv: Kv,
    member: Member,
    *,
    before: PeerId | None = None,
    liars: Collection[PeerId] = (),
) -> list[ServingPeer]:
    """Who else serves the model, where it is or is going to be; not who has paused.

    Args:
        liars: who was found to compute something else: what they serve is as if nobody did.
        before: of the peers that are going, only those with a smaller peer id are taken to get there.
    """
    loose = Numerics(format, kv, "any")  # with others no session is shared
    member.directory.know([model.shape])  # who says another number of blocks for this digest lies
    found = [
        (a.peer, a.served)
        for a in member.directory.serving(model.digest, member.now(), format)
        if a.served
        and a.served.share
        and a.peer != member.network.peer
        and a.peer not in liars
        and loose.admits(numerics_of(a.served))
    ]
    known = sorted(served.speed for _, served in found if served.speed)
    # A node that does not say how fast it is is taken for a usual one, the median.
    usual = known[len(known) // 2] if known else 1.0
    return [
        ServingPeer(
            s.going if s.going and (before is None or peer < before) else s.span, s.speed or usual, s.fits
        )
        for peer, s in found
    ]


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
