"""The life of a process that serves a graph: import it, enter the swarm, serve segments, leave when asked
to."""

from __future__ import annotations

import importlib
from contextlib import AsyncExitStack

import trio

from shoal.cli.enter import member_of
from shoal.cli.node.process import figures_of, until_asked, whole
from shoal.cli.node.turns import tell
from shoal.cli.output import say
from shoal.cli.progress import working
from shoal.cli.trust.statement_file import own_statement
from shoal.config import Settings
from shoal.net.identity import Identity
from shoal.swarm.join import join_swarm
from shoal.types import Span


async def serve_graph(settings: Settings, span: Span | None, *, as_json: bool) -> int:
    """Serve until a signal asks to stop; returns the exit code. Turns are told as by
    :func:`shoal.cli.node.process.serve`.

    Raises:
        ShoalError: it cannot serve; nothing was announced.
    """
    from shoal.models.graph.graph_store import GraphStore, names_graph
    from shoal.sharing.peer_graphs import PeerGraphs

    store = GraphStore(settings.paths.graphs)
    swarm = member_of(settings, create=True)
    identity = Identity.load_or_create(settings.paths.identity)
    operator = own_statement(settings.operator, identity.peer)
    async with AsyncExitStack() as stack:
        if names_graph(settings.model):
            with working(f"reading {settings.model}"):
                await trio.to_thread.run_sync(store.resolve, settings.model, settings.threads or 1)
        joining = join_swarm(settings, swarm, identity, listen=True, operator=operator)
        network, member = await stack.enter_async_context(joining)
        tell("listening", as_json, peer=network.peer, addresses=whole(network.address))
        if settings.fast:
            say(
                "--fast: the graph is optimised here by itself, so its bits are not those of the whole",
                dim=True,
            )
        with working(f"loading {settings.model}") as report:
            graph = await PeerGraphs(member, settings, store).resolve(settings.model, report)
            await trio.to_thread.run_sync(importlib.import_module, "shoal.node.graph.graph_node")
            from shoal.node.graph.graph_figures import graph_pages
            from shoal.node.graph.graph_node import start_graph_node
            from shoal.planning.graph_layout import graph_cost, thick_ends

            node = await stack.enter_async_context(
                start_graph_node(network, member, graph, span, settings, progress=report)
            )
            cost = await trio.to_thread.run_sync(graph_cost, graph.manifest)
        if thick := thick_ends(cost, [node.span]):
            say(f"warning: {thick}. A node with room for the whole graph is faster: see shoal plan")
        figures = await stack.enter_async_context(figures_of(settings, graph_pages(node)))
        return await until_asked(settings, network, node, figures, as_json=as_json)
