"""What a node measures of itself, as Prometheus reads it and as ``shoal status --trace`` shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

import msgspec
import trio

from shoal.metrics.meters import MEDIA_TYPE, Reading
from shoal.metrics.trace import Trace
from shoal.node.endpoint import Page
from shoal.swarm.directory import by_model, coverage
from shoal.swarm.member import Member

if TYPE_CHECKING:
    from shoal.node.node import Node

MODELS_SHOWN = 8
BLOCKS_SHOWN = 512
"""Blocks of one model: whoever announces makes up as many as he likes, and each is a line for ever."""


def pages(node: Node, traces: Mapping[str, Trace] = MappingProxyType({})) -> dict[str, Page]:
    """What the node shows over HTTP: ``/metrics``, and to this machine alone ``/trace``.

    Args:
        traces: beside the node's own, by name, for example that of a client in the same process.
    """
    metrics = node.server.metrics
    metrics.read_from(lambda: (*_serving(node), *_swarm(node.member)))
    return {
        "/metrics": Page(metrics.text, MEDIA_TYPE),
        "/trace": Page(lambda: _traces(node, traces), "application/json", local=True),
    }


def _serving(node: Node) -> Iterable[Reading]:
    engine, pool = node.engine, node.server.channels
    span = {"model": node.model.shape.name, "start": str(node.span.start), "end": str(node.span.end)}
    yield Reading("shoal_span_blocks", "Blocks that are served here.", len(node.span), span)
    yield Reading("shoal_sessions", "Sessions that are open here.", engine.sessions)
    yield Reading("shoal_queue_steps", "Steps that wait here or are being computed.", node.server.waiting)
    tokens = "Tokens of KV, by what they are."
    yield Reading("shoal_kv_tokens", tokens, engine.tokens_free, {"state": "free"})
    yield Reading("shoal_kv_tokens", tokens, engine.tokens - engine.tokens_free, {"state": "used"})
    yield Reading("shoal_kv_pages", "Pages of KV that hold something.", engine.pool.taken)
    tasks = trio.lowlevel.current_statistics().tasks_living
    yield Reading("shoal_tasks", "Tasks of the event loop.", tasks)
    yield Reading("shoal_unfinished_bytes", "Of messages that have begun to come.", pool.inbound.held)
    yield Reading("shoal_channels", "Channels to other peers.", len(pool.all()))
    for way, count in (("in", pool.received), ("out", pool.sent)):
        yield Reading("shoal_bytes", "Bytes over channels.", count, {"way": way}, "counter")


def _swarm(member: Member) -> Iterable[Reading]:
    alive = member.alive()
    yield Reading("shoal_peers", "Peers that serve something, this one among them.", len(alive))
    connections = member.network.connections()
    yield Reading("shoal_connections", "libp2p connections.", len(connections))
    for digest, spans in sorted(by_model(alive).items(), key=lambda item: -len(item[1]))[:MODELS_SHOWN]:
        counts = coverage([s.span for s in spans], min(spans[0].n_blocks, BLOCKS_SHOWN))
        for block, count in enumerate(counts):
            named = {"model": spans[0].model, "digest": digest[7:19], "block": str(block)}
            yield Reading("shoal_coverage", "Peers that serve a block.", count, named)


def _traces(node: Node, traces: Mapping[str, Trace]) -> bytes:
    named = {"node": node.server.trace, **traces}
    shown = {name: {"steps": trace.steps, "reroutes": trace.reroutes} for name, trace in named.items()}
    return msgspec.json.encode({"peer": node.member.network.peer, **shown})
