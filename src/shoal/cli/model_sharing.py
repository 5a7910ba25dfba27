"""Models from peers and for peers, and adapters from them: `shoal models pull sha256:…`, `models share`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from shoal.cli.output import many
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.types import DIGEST, Digest, Span

if TYPE_CHECKING:
    from shoal.cli.enter import Onlooker
    from shoal.models.adapters.kept import KeptAdapter
    from shoal.models.graph.graph_store import LocalGraph
    from shoal.models.store.local_model import LocalModel
    from shoal.sharing.pull import PullReport
    from shoal.sharing.shared_model import SharedModel
    from shoal.swarm.member import Member

PROVIDE_EVERY_S = 600.0


def fetched_line(report: PullReport) -> str:
    """What a pull has brought, for a reader."""
    if not report.done:
        return "all of it was here"
    peers, rate = many(len(report.by_peer), "peer"), report.bytes_s / 1e6
    line = f"fetched {report.done / 1e6:.1f} MB from {peers} at {rate:.1f} MB/s"
    wrong = ", ".join(sorted(report.wrong))
    return f"{line}; left out for sending wrong pieces: {wrong}" if wrong else line


def is_graph(settings: Settings, name: str) -> bool:
    """Whether a name means a graph: by its file, or by a name or digest that is known here or to peers.

    What peers are asked for is kept: who serves it then asks for nothing twice.

    Raises:
        NoCoverage: nobody who can be reached has the model or graph of that digest.
    """
    from shoal.cli.enter import looking
    from shoal.models.graph.graph_store import GraphStore, LocalGraph
    from shoal.models.store.store import ModelStore
    from shoal.sharing.peer_models import is_graph_here
    from shoal.swarm.membership import PUBLIC, names

    graphs, models = GraphStore(settings.paths.graphs), ModelStore(settings.paths.models)
    known = is_graph_here(graphs, models, name)
    private = settings.swarm != PUBLIC and settings.swarm in names(settings.paths.swarms)
    if known is not None or not (private or DIGEST.fullmatch(name)):
        return bool(known)

    async def use(onlooker: Onlooker) -> bool:
        from shoal.sharing.peer_models import PeerModels

        with working(f"asking peers for {name}") as report:
            found = await PeerModels(onlooker.member, settings).resolve(name, report)
        return isinstance(found, LocalGraph)

    return looking(settings, use)


def pull_from_peers(
    settings: Settings, name: str, span: Span | None
) -> tuple[LocalGraph | LocalModel, PullReport]:
    """Fetch a span of a model or a graph, or all of it, from the peers of a swarm.

    Raises:
        NoCoverage: nobody who can be reached has it.
        UnknownModel: no peer serves a model of that name, and no hub has it.
        UsageError: it has no such span.
        OutOfResources: the disk is full.
    """
    from shoal.cli.enter import looking

    async def use(onlooker: Onlooker) -> tuple[LocalGraph | LocalModel, PullReport]:
        from shoal.models.graph.graph_store import LocalGraph, check_segments
        from shoal.node.node import check_blocks_exist
        from shoal.sharing.peer_models import PeerModels

        models = PeerModels(onlooker.member, settings)
        with working(f"getting {name}") as report:
            found = await models.resolve(name, report)
            if isinstance(found, LocalGraph):
                wanted = span or Span(0, len(found.manifest.segments))
                check_segments(found, wanted)
                await models.graphs.fetch_span(found, wanted, report)
            elif span is None:
                await models.weights.fetch_all(found, report)
            else:
                check_blocks_exist(found, span)
                await models.weights.fetch_span(found, span, report)
        return found, models.report

    return looking(settings, use)


def pull_adapter(settings: Settings, model: str, adapter: str) -> tuple[KeptAdapter, PullReport]:
    """Fetch an adapter from the peers that serve a model with it; the model need not be here.

    Raises:
        UnknownModel: nobody serves that model, or with that adapter.
        As :meth:`PeerAdapters.get`.
    """
    from shoal.cli.enter import check_name, looking
    from shoal.models.store.store import ModelStore

    check_name(settings, model)

    async def use(onlooker: Onlooker) -> tuple[KeptAdapter, PullReport]:
        from shoal.sharing.peer_adapters import PeerAdapters

        adapters = PeerAdapters(onlooker.member, settings)
        with working(f"getting {model}:{adapter}") as report:
            shape = await adapters.model_of(model, ModelStore(settings.paths.models))
            kept = await adapters.get(adapter, "", shape, report)
        return kept, adapters.report

    return looking(settings, use)


def share_model(settings: Settings, name: str, *, as_json: bool) -> None:
    """Give a model or a graph of this machine to peers until a signal asks to stop.

    Raises:
        UnknownModel: it is not here.
        NotAllowed, PortInUse: see ``join_swarm``.
    """
    import trio

    from shoal.models.graph.graph_store import GraphStore, names_graph
    from shoal.models.store.store import ModelStore
    from shoal.sharing.shared_model import SharedModel

    store, graphs = ModelStore(settings.paths.models), GraphStore(settings.paths.graphs)
    with working(f"looking at {name}"):
        graph = graphs.resolve(name, settings.threads or 1) if names_graph(name) else graphs.find(name)
        shared = SharedModel.open(store, store.show(name)) if graph is None else SharedModel.of_graph(graph)
    trio.run(_share, settings, shared, as_json)


async def _share(settings: Settings, shared: SharedModel, as_json: bool) -> None:
    import trio

    from shoal.cli.enter import member_of
    from shoal.cli.node.process import whole
    from shoal.cli.node.turns import tell
    from shoal.local.ending import how_to_end, stop_signals
    from shoal.net.identity import Identity
    from shoal.sharing.weight_server import serve_weights
    from shoal.swarm.join import join_swarm
    from shoal.swarm.local_nodes import RunningNode, node_file

    model = shared.model
    # An identity for the occasion: a node of this machine may run beside it, with the machine's own.
    joining = join_swarm(settings, member_of(settings, create=True), Identity.ephemeral(), listen=True)
    with trio.open_signal_receiver(*stop_signals()) as signals:
        async with joining as (network, member), trio.open_nursery() as nursery:
            await nursery.start(serve_weights, network, shared, settings.share_rate)
            nursery.start_soon(_provide, member, model.digest)
            addresses = whole(network.address)
            here = RunningNode(os.getpid(), network.peer, settings.swarm, model.name, "", tuple(addresses))
            with node_file(settings.paths.nodes, here):
                tell(
                    "sharing",
                    as_json,
                    model=model.name,
                    digest=model.digest,
                    peer=network.peer,
                    addresses=addresses,
                    ended_by=how_to_end(),
                )
                await anext(signals)
            nursery.cancel_scope.cancel()
    tell("ended", as_json)


async def _provide(member: Member, digest: Digest) -> None:
    """Tell the DHT who has the model, now and again."""
    import trio

    from shoal.swarm.views.look_up import manifest_key

    while True:
        await member.network.provide(manifest_key(digest))
        await trio.sleep(PROVIDE_EVERY_S)
