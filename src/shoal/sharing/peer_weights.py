"""A swarm as a place that models come from: what is not here is fetched from peers before any hub is asked.

By its name a model comes only from the peers of a private swarm, who all know its secret. By its digest it
may come from anybody: nothing that comes can be another model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from shoal.config import Settings
from shoal.errors import UnknownModel
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.encoders import is_position_bias
from shoal.models.checkpoint.headers import TensorEntry
from shoal.models.checkpoint.manifest import Manifest, read_manifest
from shoal.models.checkpoint.parts import missing_parts, opening_items, read_pulled
from shoal.models.checkpoint.sizes import block_tensors
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.progress import Progress, silent
from shoal.sharing.peer_finder import HEARD_WITHIN_S, name_served, served_as
from shoal.sharing.peer_pulls import PeerPulls
from shoal.sharing.pulled_folder import PulledFolder
from shoal.swarm.member import Member
from shoal.types import DIGEST, Digest, Span

TensorChoice = Callable[[list[list[TensorEntry]], list[TensorEntry]], Sequence[TensorEntry]]
"""Of the tensors of each block, and of those outside of all blocks, the ones that are wanted."""


class PeerWeights(PeerPulls):
    """Models from the peers of one swarm, put into a store."""

    def __init__(self, member: Member, settings: Settings, store: ModelStore) -> None:
        super().__init__(member, settings, store.root)
        self.store = store

    async def resolve(self, name: str, progress: Progress = silent) -> LocalModel:
        """A model by its name, digest or path: as it is here, or from peers, or from where its name says.

        From peers come the config and the text files; tensors when they are needed (:meth:`fetch_span`).

        Raises:
            As ``ModelStore.resolve``; NoCoverage: peers serve it, and none gives it.
        """
        here = partial(self._if_here, name, progress)
        if (local := await trio.to_thread.run_sync(here, abandon_on_cancel=True)) is not None:
            return local
        digest = await self._digest_of(name, progress)
        if digest is None:
            resolve = partial(self.store.resolve, name, progress)
            return await trio.to_thread.run_sync(resolve, abandon_on_cancel=True)
        known = await trio.to_thread.run_sync(self.store.find, digest)
        return known or await self.begin(digest, name, progress)

    def _if_here(self, name: str, progress: Progress) -> LocalModel | None:
        return self.store.resolve(name, progress) if self.store.is_here(name) else None

    async def fetch_span(self, model: LocalModel, span: Span, progress: Progress = silent) -> None:
        """Fetch what is missing of a span's tensors, if the model comes from peers.

        Raises:
            NoCoverage: nobody who can be reached has them.
            OutOfResources: the disk is full.
        """
        await self._fetch(model, partial(span_tensors, span), progress)

    async def fetch_ends(self, model: LocalModel, progress: Progress = silent) -> None:
        """Fetch what is missing of the embedding, the last norm and the head. As :meth:`fetch_span`."""
        await self._fetch(model, lambda _, ends: ends, progress)

    async def fetch_tower(self, model: LocalModel, progress: Progress = silent) -> None:
        """Fetch what is missing of what looks at pictures. As :meth:`fetch_span`."""
        await self._fetch(model, None, progress)

    async def fetch_all(self, model: LocalModel, progress: Progress = silent) -> None:
        """Fetch all that is missing. As :meth:`fetch_span`."""
        await self._fetch(model, lambda blocks, ends: [*ends, *(e for b in blocks for e in b)], progress)

    async def _digest_of(self, name: str, progress: Progress) -> Digest | None:
        """The digest by which peers are asked for a model; ``None`` where they are not."""
        if DIGEST.fullmatch(name):
            self._refuse_graph(name)
            return Digest(name)
        if not self.private:
            return None  # nor is it believed of a name what it is
        self._refuse_graph(name)
        progress(f"Asking peers for {name}", 0, 0)
        return await served_as(self.member, name, HEARD_WITHIN_S)

    def _refuse_graph(self, name: str) -> None:
        """Raises UnknownModel: all who serve something by this name or digest say that it is a graph."""
        shapes = self.member.directory.models(self.member.now())
        if {shape.kind for shape in shapes if name in (shape.digest, shape.name)} == {"graph"}:
            raise UnknownModel(
                f"{name} is a graph, and no language model",
                check="give it arrays: shoal infer",
                next_command=f"shoal infer {name} --input NAME=FILE",
            )

    async def begin(
        self, digest: Digest, name: str, progress: Progress = silent, raw: bytes = b""
    ) -> LocalModel:
        """Bring a model's manifest, config and text files. Raises as :meth:`resolve`.

        Args:
            name: by which it was asked for.
            raw: its manifest, if that has come already.
        """
        name = name_served(self.member, digest, name, "model")
        async with self.pulling(digest, name, progress) as pull:
            # Another process may have begun it while this one waited for its turn.
            if (known := await trio.to_thread.run_sync(self.store.find, digest)) is not None:
                return known
            manifest = read_manifest(raw) if raw else await pull.manifest(digest)
            called, folder = await trio.to_thread.run_sync(self.store.shared_folder, name, digest)
            made = await trio.to_thread.run_sync(_make_folder, folder, manifest)
            await pull.items(made, opening_items(manifest))
            keep = partial(self.store.keep_shared, called, digest, progress)
            return await trio.to_thread.run_sync(keep)

    async def _fetch(self, model: LocalModel, choose: TensorChoice | None, progress: Progress) -> None:
        if not model.source.startswith("peers:"):
            return
        missing = await trio.to_thread.run_sync(_missing_items, model, choose)
        if missing:
            async with self.pulling(model.digest, model.name, progress) as pull:
                folder = await trio.to_thread.run_sync(_open_folder, model.path)
                await pull.items(folder, missing)


def span_tensors(
    span: Span, blocks: Sequence[Sequence[TensorEntry]], ends: Sequence[TensorEntry]
) -> list[TensorEntry]:
    """What a node needs that serves a span: its blocks' tensors, and what else they are computed with."""
    own = [entry for block in blocks[span.start : span.end] for entry in block]
    return own + [entry for entry in ends if is_position_bias(entry.name)]


def has_span(model: LocalModel, span: Span) -> bool:
    """Whether all tensors of a span are on this machine. Raises BadWeights: the model cannot be read."""
    return not _missing_items(model, partial(span_tensors, span))


def _make_folder(folder: Path, manifest: Manifest) -> PulledFolder:
    made = PulledFolder(folder, manifest)
    text = json.dumps(manifest.config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    return made


def _open_folder(folder: Path) -> PulledFolder:
    manifest = read_pulled(folder)
    if manifest is None:
        raise UnknownModel(
            f"{folder}: the manifest of this model is gone",
            check="remove the model and fetch it again",
            next_command="shoal models list",
        )
    return PulledFolder(folder, manifest)


def _missing_items(model: LocalModel, choose: TensorChoice | None) -> list[int]:
    """The items of which something is missing here, by their places in the manifest.

    Args:
        choose: ``None`` for the tower's.
    """
    checkpoint = open_checkpoint(model.path)
    if checkpoint.manifest is None:
        return []
    if choose is None:
        chosen = list(checkpoint.tower.tensors.values()) if checkpoint.tower else []
    else:
        blocks = block_tensors(checkpoint, model.shape.n_blocks)
        inside = {id(entry) for entries in blocks for entry in entries}
        ends = [entry for entry in checkpoint.tensors.values() if id(entry) not in inside]
        chosen = choose(blocks, ends)
    wanted = [stored for entry in chosen for stored in entry.stored]
    missing = missing_parts(wanted)
    names = {entry.name for entry in wanted if entry.file in missing}
    return [number for number, item in enumerate(checkpoint.manifest.items) if item.name in names]
