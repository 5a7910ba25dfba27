"""The life of a node process: enter the swarm, choose and load a span, serve, and leave when asked to."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

import trio

from shoal.cli.enter import check_name, member_of
from shoal.cli.gateway.child import beside
from shoal.cli.node.turns import tell
from shoal.cli.node.twins import warn_of_twins
from shoal.cli.progress import working
from shoal.cli.trust.statement_file import own_statement
from shoal.config import Settings
from shoal.errors import EXIT_INTERRUPTED, EXIT_OK
from shoal.local.ending import how_to_end, stop_signals
from shoal.models.store.store import ModelStore
from shoal.net.identity import Identity
from shoal.sharing.peer_adapters import PeerAdapters
from shoal.sharing.peer_weights import PeerWeights
from shoal.swarm.join import join_swarm
from shoal.swarm.local_nodes import RunningNode, node_file
from shoal.tasks import one_error
from shoal.types import Format, Numerics, PeerAddress, Span

if TYPE_CHECKING:
    from shoal.net.network import Network
    from shoal.node.endpoint import EndpointPages
    from shoal.node.node import Node
    from shoal.planning.placement import Move


class ServingNode(Protocol):
    """A node of a language model or of a graph, as far as its process is concerned with it."""

    @property
    def model(self) -> Named: ...

    @property
    def span(self) -> Span: ...

    @property
    def format(self) -> Format: ...

    @property
    def server(self) -> Sessioned: ...

    async def drain(self, timeout_s: float = ...) -> bool:
        """Let nobody in any more, and wait until what is open has ended; whether it has."""
        ...


class Named(Protocol):
    """A model with a name."""

    @property
    def name(self) -> str: ...


class Sessioned(Protocol):
    """What holds sessions."""

    @property
    def sessions(self) -> int: ...


async def serve(settings: Settings, span: Span | None, *, gateway: bool, as_json: bool) -> int:
    """Serve until a signal asks to stop; returns the exit code: 130 after Ctrl-C, otherwise 0.

    With ``as_json``, each turn of the node's life is one line on stdout: ``listening``, ``serving``,
    ``leaving``, ``ended``; ``moved`` where it took another span; ``yielding`` where it gave way to its
    machine's owner, or came back; and ``gateway``, if there is one beside.

    Raises:
        ShoalError: it cannot serve; nothing was announced.
    """
    store = ModelStore(settings.paths.models)
    check_name(settings, settings.model)
    swarm = member_of(settings, create=True)
    identity = Identity.load_or_create(settings.paths.identity)
    operator = own_statement(settings.operator, identity.peer)
    async with AsyncExitStack() as stack:
        joining = join_swarm(settings, swarm, identity, listen=True, operator=operator)
        network, member = await stack.enter_async_context(joining)
        tell("listening", as_json, peer=network.peer, addresses=whole(network.address))
        with working(f"loading {settings.model}") as report:
            # Torch takes seconds to import; on a thread, so that others may dial us meanwhile.
            await trio.to_thread.run_sync(importlib.import_module, "shoal.node.node")
            from shoal.executor.device.device import memory_budget
            from shoal.executor.device.find import find_device
            from shoal.node.figures import pages
            from shoal.node.formats import pick_format
            from shoal.node.node import start_node
            from shoal.node.placing.placement import pick_span, reserve
            from shoal.swarm.audit_book import AuditBook

            device = (await trio.to_thread.run_sync(find_device, settings.device)).device
            weights, adapters = PeerWeights(member, settings, store), PeerAdapters(member, settings)
            adapters.report = weights.report
            model = await weights.resolve(settings.model, report)
            await member.use(model.digest)
            # Before anything large comes: where there is no such adapter, nothing is to be served.
            await adapters.folders(settings.adapter, model.shape, report)
            format = pick_format(model, settings, member, device).format
            liars = AuditBook(settings.paths.audits).liars(time.time())
            memory, loose = memory_budget(settings, device), Numerics(format, settings.kv, "any")
            chosen = span or pick_span(model, loose, memory, member, liars)
            if span is None:
                await reserve(model, loose, chosen, member, liars)
            await weights.fetch_span(model, chosen, report)
            if (fetched := weights.report).done:
                tell("fetched", as_json, **fetched.shown())
            held = replace(settings, format=format, device=device.name)  # the span was chosen for both
            node = await stack.enter_async_context(
                start_node(
                    network,
                    member,
                    model,
                    chosen,
                    held,
                    lambda text: report(text, 0, 0),
                    turned=lambda watch: tell("yielding", as_json, share=watch.share, what=str(watch)),
                )
            )
        figures = await stack.enter_async_context(figures_of(settings, pages(node)))
        steady()
        if span is None:
            await stack.enter_async_context(_moving(node, as_json))
        return await until_asked(settings, network, node, figures, gateway=gateway, as_json=as_json)


@asynccontextmanager
async def _moving(node: Node, as_json: bool) -> AsyncGenerator[None]:
    """While the block runs, move the node to where the swarm needs it more."""
    from shoal.node.placing.placement import keep_place

    def moved(move: Move) -> None:
        tell("moved", as_json, start=move.span.start, end=move.span.end, why=move.why)

    with one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_place, node, moved)
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def figures_of(settings: Settings, shown: EndpointPages) -> AsyncGenerator[str]:
    """Show the node's figures and traces while the block runs; gives the URL, empty when they are not wanted.

    Raises:
        PortInUse: a port was asked for and is taken.
    """
    from shoal.node.endpoint import show

    if settings.metrics_host == "none":
        yield ""
        return
    with one_error():
        async with trio.open_nursery() as nursery:
            yield await nursery.start(show, shown, settings.metrics_host, settings.metrics_port)
            nursery.cancel_scope.cancel()


def steady() -> None:
    """Keep the interpreter out of a step's way, once everything is loaded.

    What is loaded stays: the collector need not walk through torch's and transformers' objects again, which
    takes it a quarter of a second. And a thread that wants the interpreter gets it after half a millisecond,
    not after five.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.0005)


async def until_asked(
    settings: Settings,
    network: Network,
    node: ServingNode,
    figures: str,
    *,
    gateway: bool = False,
    as_json: bool,
) -> int:
    """Serve until a signal asks to stop, then let what is open come to its end; returns the exit code."""
    addresses = whole(network.address)
    here = RunningNode(
        os.getpid(), network.peer, settings.swarm, node.model.name, str(node.span), tuple(addresses), figures
    )
    with (
        trio.open_signal_receiver(*stop_signals()) as signals,
        node_file(settings.paths.nodes, here),
    ):
        tell(
            "serving",
            as_json,
            peer=network.peer,
            model=node.model.name,
            start=node.span.start,
            end=node.span.end,
            format=node.format,
            ended_by=how_to_end(),
            addresses=addresses,
            pid=here.pid,
            figures=figures,
        )
        # The gateway ends first: what it holds on this node would keep it from leaving.
        async with (
            beside(settings, as_json=as_json) if gateway else nullcontext(),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(warn_of_twins, settings.paths.nodes, here)
            asked = await anext(signals)
            nursery.cancel_scope.cancel()
        tell("leaving", as_json, sessions=node.server.sessions, ended_by=how_to_end())
        drained = await _drain(node, signals)
        tell("ended", as_json, drained=drained)
    return EXIT_INTERRUPTED if asked == signal.SIGINT else EXIT_OK


async def _drain(node: ServingNode, signals: AsyncIterator[int]) -> bool:
    """Let open sessions end; a second signal, or too long a wait, ends them at once."""
    drained = False
    async with trio.open_nursery() as nursery:

        async def impatient() -> None:
            await anext(signals)
            nursery.cancel_scope.cancel()

        nursery.start_soon(impatient)
        drained = await node.drain()
        nursery.cancel_scope.cancel()
    return drained


def whole(address: PeerAddress) -> list[str]:
    """The libp2p multiaddrs of a peer, each with its ``/p2p`` part."""
    return [f"{multiaddr}/p2p/{address.peer}" for multiaddr in address.libp2p]
