"""A language model or a graph, whichever a name or a digest means: as it is here, or from peers."""

from __future__ import annotations

import trio

from shoal.config import Settings
from shoal.errors import UnknownModel
from shoal.models.graph.graph_store import GraphStore, LocalGraph, names_graph
from shoal.models.graph.manifest import is_graph_manifest
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.progress import Progress, silent
from shoal.sharing.peer_graphs import PeerGraphs
from shoal.sharing.peer_weights import PeerWeights
from shoal.swarm.member import Member
from shoal.types import DIGEST, Digest


class PeerModels:
    """Models and graphs from the peers of one swarm, put into the stores of this machine."""

    def __init__(self, member: Member, settings: Settings) -> None:
        self.graphs = PeerGraphs(member, settings, GraphStore(settings.paths.graphs))
        self.weights = PeerWeights(member, settings, ModelStore(settings.paths.models))
        self.report = self.weights.report = self.graphs.report
        """Of all that was fetched."""

    async def resolve(self, name: str, progress: Progress = silent) -> LocalGraph | LocalModel:
        """What a name or digest means. What its kind is told by comes from peers once.

        Raises:
            As :meth:`PeerGraphs.resolve` or :meth:`PeerWeights.resolve`.
        """
        graphs, weights = self.graphs, self.weights
        is_graph = await trio.to_thread.run_sync(is_graph_here, graphs.store, weights.store, name)
        if is_graph is None and DIGEST.fullmatch(name):
            digest = Digest(name)
            async with graphs.pulling(digest, name, progress) as pull:
                raw = await pull.manifest_bytes(digest)
            return await (graphs if is_graph_manifest(raw) else weights).begin(digest, name, progress, raw)
        if is_graph is None:
            is_graph = await graphs.serves(name, progress)
        return await (graphs if is_graph else weights).resolve(name, progress)


def is_graph_here(graphs: GraphStore, models: ModelStore, name: str) -> bool | None:
    """Whether a name or digest means a graph; ``None`` where only peers may know. Blocks.

    What this machine has as a language model, and what a catalogue or a hub may have, is none.
    """
    if names_graph(name):
        return True
    if models.is_here(name):
        return False
    if graphs.find(name) is not None:
        return True
    if DIGEST.fullmatch(name):
        return None
    try:
        models.check(name)
    except UnknownModel:
        return None
    return False
