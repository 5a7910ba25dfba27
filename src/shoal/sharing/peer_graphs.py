"""Graphs from the peers of a swarm: the manifest, the graph itself, and the weights of the segments wanted.

As of models, by its name a graph comes only from the peers of a private swarm, by its digest from anybody.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import trio

from shoal.config import Settings
from shoal.errors import UnknownModel
from shoal.models.graph.graph_store import GraphStore, LocalGraph, names_graph
from shoal.models.graph.items import (
    STRUCTURE_ITEM,
    graph_items,
    graph_parts,
    missing_graph_items,
    span_items,
)
from shoal.models.graph.manifest import is_graph_manifest, read_graph_manifest
from shoal.progress import Progress, silent
from shoal.sharing.peer_finder import HEARD_WITHIN_S, name_served, served_as
from shoal.sharing.peer_pulls import PeerPulls
from shoal.sharing.pulled_folder import PulledFolder
from shoal.swarm.member import Member
from shoal.types import DIGEST, Digest, Span


class PeerGraphs(PeerPulls):
    """Graphs from peers, put into a store."""

    def __init__(self, member: Member, settings: Settings, store: GraphStore) -> None:
        super().__init__(member, settings, store.root)
        self.store = store
        self._threads = settings.threads or 1

    async def resolve(self, name: str, progress: Progress = silent) -> LocalGraph:
        """A graph by its file, or by its name or digest as it is here, or as peers serve it.

        From peers come the manifest and the graph; weights when they are needed (:meth:`fetch_span`).

        Raises:
            UnknownModel: there is no such file or graph, or it is a language model.
            As :meth:`GraphStore.resolve`; NoCoverage: nobody who can be reached gives it.
        """
        if names_graph(name):
            resolve = partial(self.store.resolve, name, self._threads)
            return await trio.to_thread.run_sync(resolve, abandon_on_cancel=True)
        if (found := await trio.to_thread.run_sync(self.store.find, name)) is not None:
            return found
        digest = Digest(name) if DIGEST.fullmatch(name) else await self._served_digest(name, progress)
        if digest is None:
            raise UnknownModel(
                f"no graph is known as {name[:200]!r}",
                check="name its .onnx file, or its sha256: digest",
                next_command="shoal status",
            )
        return await self.begin(digest, name, progress)

    async def serves(self, name: str, progress: Progress = silent) -> bool:
        """Whether peers of a private swarm serve a graph by a name."""
        return await self._served_digest(name, progress) is not None

    async def fetch_span(self, graph: LocalGraph, span: Span, progress: Progress = silent) -> None:
        """Fetch what is missing of a span's weights, if the graph comes from peers.

        Raises:
            NoCoverage: nobody who can be reached has them.
            OutOfResources: the disk is full.
        """
        wanted = span_items(graph.manifest, span)
        missing = await trio.to_thread.run_sync(missing_graph_items, graph.folder, graph.manifest, wanted)
        if missing and graph.folder == self.store.shared_folder(graph.digest):
            async with self.pulling(graph.digest, graph.name, progress) as pull:
                folder = await trio.to_thread.run_sync(_open, graph.folder, graph.raw)
                await pull.items(folder, missing)

    async def _served_digest(self, name: str, progress: Progress) -> Digest | None:
        """The graph that peers serve by a name; ``None`` if nobody says so in a while, or several are."""
        if not self.private:
            return None  # what a name means there is not believed
        progress(f"Asking peers for {name}", 0, 0)
        await served_as(self.member, name, HEARD_WITHIN_S)
        shapes = self.member.directory.models(self.member.now())
        found = {shape.digest for shape in shapes if shape.kind == "graph" and shape.name == name}
        return found.pop() if len(found) == 1 else None

    async def begin(
        self, digest: Digest, name: str, progress: Progress = silent, raw: bytes = b""
    ) -> LocalGraph:
        """Bring a graph's manifest, and the graph without its weights. Raises as :meth:`resolve`.

        Args:
            name: by which it was asked for.
            raw: its manifest, if that has come already.
        """
        name = name_served(self.member, digest, name, "graph")
        async with self.pulling(digest, name, progress) as pull:
            if (known := await trio.to_thread.run_sync(self.store.find, digest)) is not None:
                return known
            raw = raw or await pull.manifest_bytes(digest)
            if not is_graph_manifest(raw):
                raise UnknownModel(
                    f"{name} is a language model, and no graph", next_command=f"shoal serve {name}"
                )
            folder = await trio.to_thread.run_sync(_open, self.store.shared_folder(digest), raw)
            await pull.items(folder, [STRUCTURE_ITEM])
            return await trio.to_thread.run_sync(self.store.keep_shared, digest, name)


def _open(folder: Path, raw: bytes) -> PulledFolder:
    manifest = read_graph_manifest(raw)
    return PulledFolder(folder, graph_items(manifest, raw), graph_parts(manifest))
