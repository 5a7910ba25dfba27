"""What a graph's node measures of itself, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Iterable

from shoal.metrics.meters import MEDIA_TYPE, Reading
from shoal.node.endpoint import EndpointPage
from shoal.node.figures import channel_readings
from shoal.node.graph.graph_node import GraphNode


def graph_pages(node: GraphNode) -> dict[str, EndpointPage]:
    """What the node shows over HTTP: ``/metrics``."""
    metrics = node.server.metrics
    metrics.read_from(lambda: _readings(node))
    return {"/metrics": EndpointPage(metrics.text, MEDIA_TYPE)}


def _readings(node: GraphNode) -> Iterable[Reading]:
    server = node.server
    span = {"model": node.model.name, "start": str(node.span.start), "end": str(node.span.end)}
    yield Reading("shoal_span_blocks", "Segments that are served here.", len(node.span), span)
    yield Reading("shoal_sessions", "Sessions that are open here.", server.sessions)
    yield Reading("shoal_queue_steps", "Requests that wait here or are being computed.", server.waiting)
    yield from channel_readings(server.channels)
