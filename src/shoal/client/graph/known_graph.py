"""A graph as its client knows it: by its manifest, from a file of this machine or from who serves it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from shoal.errors import UnknownModel
from shoal.models.graph.graph_store import LocalGraph
from shoal.models.graph.manifest import GraphManifest
from shoal.models.store.catalogue import find_entry
from shoal.swarm.announcement import Announcement
from shoal.types import Digest, ModelShape


@dataclass(frozen=True, slots=True)
class KnownGraph:
    """All that is needed to ask a swarm for what a graph computes."""

    manifest: GraphManifest
    shape: ModelShape

    @property
    def name(self) -> str:
        return self.shape.name

    @property
    def digest(self) -> Digest:
        return self.shape.digest


def of_local(graph: LocalGraph) -> KnownGraph:
    """A graph that was imported here."""
    return KnownGraph(graph.manifest, graph.shape)


def digest_served(name: str, announcements: Iterable[Announcement]) -> Digest | None:
    """The graph that peers serve by this name or digest; ``None`` where nobody does.

    Raises:
        UnknownModel: several are called so.
    """
    served = [a.served for a in announcements if a.served and a.served.kind == "graph"]
    found = sorted({one.digest for one in served if name in (one.model, one.digest)})
    if len(found) > 1:
        raise UnknownModel(
            f"{len(found)} graphs are called {name!r} here: {', '.join(found)[:300]}",
            check="name the one that you mean by its digest, or by its file",
        )
    return Digest(found[0]) if found else None


def names_language_model(name: str, announcements: Iterable[Announcement]) -> bool:
    """Whether a name is a language model's: of one that is served, in the catalogue, or on this machine."""
    served = [a.served for a in announcements if a.served and a.served.kind != "graph"]
    if any(name in (one.model, one.digest) for one in served) or find_entry(name) is not None:
        return True
    return name.endswith(".gguf") or (Path(name) / "config.json").is_file()
