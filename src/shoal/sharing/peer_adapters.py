"""Adapters from the peers that serve them, for nodes that have no folder of them.

As of models, by its name an adapter comes only from the peers of a private swarm, by its whole digest from
anybody. What a peer sends is checked twice: each chunk by the peer's manifest as it comes, and the adapter by
its digest when all is here. Who has sent the manifest of another one is asked for nothing more for a week.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from shoal.config import Settings
from shoal.errors import BadWeights, DigestMismatch, NoCoverage, ShoalError, UnknownModel, UnsupportedModel
from shoal.models.adapters.files import read_adapter_manifest
from shoal.models.adapters.kept import KeptAdapter, KeptAdapters
from shoal.models.adapters.names import digest_key, is_key, named_by, only_one
from shoal.models.adapters.read import checked_name, named_path
from shoal.models.checkpoint.manifest import Manifest
from shoal.models.store.store import ModelStore
from shoal.progress import Progress, silent
from shoal.sharing.peer_finder import HEARD_WITHIN_S, LOOK_EVERY_S, served_as
from shoal.sharing.peer_pulls import PeerPulls
from shoal.sharing.pull import FindPeers, Pull
from shoal.sharing.pulled_folder import PulledFolder
from shoal.swarm.announcement import ServedAdapter
from shoal.swarm.member import Member
from shoal.types import DIGEST, AdapterDigest, Digest, ModelShape, PeerAddress, PeerId

MANIFESTS = 8
"""That are tried: a peer's word costs it nothing, and this machine all that it says there is."""
WHOLE_DIGEST = 64
"""Hex digits. Fewer can be met by somebody who tries."""


class PeerAdapters(PeerPulls):
    """Adapters from the peers of one swarm, kept on this machine."""

    def __init__(self, member: Member, settings: Settings) -> None:
        super().__init__(member, settings, settings.paths.adapters)
        self.kept = KeptAdapters(settings.paths.adapters)

    async def folders(
        self, wanted: Sequence[str], shape: ModelShape, progress: Progress = silent
    ) -> list[str]:
        """The folders of a node's adapters, as ``[NAME=]PATH``.

        Args:
            wanted: such, or a name or digest in the place of the path. A name means a folder of that name,
                else what has come here before, else what peers serve.

        Raises:
            As :meth:`get`; UsageError: nothing can be called so.
        """
        found: list[str] = []
        for text in wanted:
            given, what = named_path(text)
            if _is_no_folder(what):
                checked_name(Path(what), given or "adapter")
                kept = await self.get(what, given, shape, progress)
                found.append(f"{given or _name_for(what, kept)}={kept.folder}")
            else:
                found.append(text)
        return found

    async def get(self, key: str, name: str, shape: ModelShape, progress: Progress = silent) -> KeptAdapter:
        """An adapter of a model by its name or digest, as it is here, or from the peers that serve it.

        Args:
            name: what it is to be called here; by default as by who serves it.

        Raises:
            UnknownModel: nobody serves the model with it.
            UsageError: several are called so.
            DigestMismatch: it is for another model.
            NoCoverage: peers serve it, and none gives it.
            BadWeights, UnsupportedModel: what they give is damaged, or of a kind that is not computed here.
            OutOfResources: the disk is full.
        """
        kept = await trio.to_thread.run_sync(self.kept.find, key, shape.digest)
        if kept is not None:
            called = name or _name_for(key, kept)
            return await trio.to_thread.run_sync(self.kept.call, kept, called)
        self._check_key(key)
        progress(f"Asking peers for the adapter {key}", 0, 0)
        await self.member.use(shape.digest)
        served = await self._served(key, shape)
        digest = AdapterDigest(next(iter(served)))
        return await self._fetch(digest, name or served[digest], shape, progress)

    async def model_of(self, name: str, store: ModelStore) -> ModelShape:
        """The model of a name or digest, which need not be here, as peers serve it.

        Raises:
            UnknownModel: it is not here, and nobody serves it.
        """
        if (local := await trio.to_thread.run_sync(store.find, name)) is not None:
            return local.shape
        digest = Digest(name) if DIGEST.fullmatch(name) else None
        if digest is None and self.private:
            digest = await served_as(self.member, name, HEARD_WITHIN_S)
        if digest is not None:
            await self.member.use(digest)
            shapes = self.member.directory.models(self.member.now())
            for shape in shapes:
                if shape.digest == digest:
                    return shape
        raise UnknownModel(
            f"no model is known as {name[:200]!r} here, and no peer is known that serves one",
            check="check the model's name; in the public swarm give its sha256: digest",
            next_command="shoal status",
        )

    def _check_key(self, key: str) -> None:
        """Raises UnknownModel: in the public swarm anybody may call anything so."""
        if not self.private and len(digest_key(key)) < WHOLE_DIGEST:
            raise UnknownModel(
                f"there is no folder {key} here, and in the public swarm a name is not enough to have an "
                "adapter from peers",
                check="give all 64 hex digits of its digest, or the path of its folder",
            )

    async def _served(self, key: str, shape: ModelShape) -> dict[str, str]:
        """The digest of the one adapter of that name that a model is served with, and what it is called.

        Raises as :meth:`get`.
        """
        found: dict[str, str] = {}
        with trio.move_on_after(HEARD_WITHIN_S):
            while True:
                if found := self._announced(key, shape.digest):
                    break
                await trio.sleep(LOOK_EVERY_S)
        only_one(key, list(found), f"peers serve {shape.name} with", f"--adapter {key}=")
        if found:
            return found
        for model in self.member.directory.models(self.member.now()):
            if model.digest != shape.digest and self._announced(key, model.digest):
                raise DigestMismatch(
                    f"the adapter {key} is served with {model.name} ({model.digest[:19]}…), and was not made "
                    f"for {shape.name} ({shape.digest[:19]}…)",
                    check="serve the model that it was made for",
                    next_command=f"shoal serve {model.name} --adapter {key}",
                )
        others = sorted({adapter.name for _, adapter in self._serving(shape.digest)})
        known = f"there is {', '.join(others)}" if others else "nobody serves it with an adapter"
        raise UnknownModel(
            f"there is no folder {key} here, and nobody serves {shape.name} with an adapter of that name: "
            f"{known}",
            check="check the adapter's name, or give the path of its folder",
            next_command=f"shoal serve {shape.name} --adapter {key}=PATH",
        )

    def _announced(self, key: str, model: Digest) -> dict[str, str]:
        """The digests that fit, and what most of who serves each call it."""
        names, is_meant = defaultdict[str, Counter[str]](Counter), named_by(key)
        for _, adapter in self._serving(model):
            if is_meant(adapter.name, adapter.digest):
                names[adapter.digest][adapter.name] += 1
        return {
            digest: min(called, key=lambda name: (-called[name], name)) for digest, called in names.items()
        }

    def _serving(self, model: Digest) -> list[tuple[PeerAddress, ServedAdapter]]:
        own = self.member.network.peer
        return [
            (a.address, adapter)
            for a in self.member.directory.serving(model, self.member.now())
            if a.served is not None and a.peer != own
            for adapter in a.served.adapters
        ]

    async def _fetch(
        self, digest: AdapterDigest, name: str, shape: ModelShape, progress: Progress
    ) -> KeptAdapter:
        """Bring an adapter, by one manifest after another until one makes it. Raises as :meth:`get`."""
        givers = _Givers(digest)

        async def find() -> list[PeerAddress]:
            out = self._wrong.peers() | givers.failed
            serving = {a.peer: a for a, adapter in self._serving(shape.digest) if adapter.digest == digest}
            return [address for peer, address in serving.items() if peer not in out]

        title = f"the adapter {name}"
        error: ShoalError | None = None
        async with self.pulling(Digest(digest), title, progress, find) as asking:
            # Another process may have brought it while this one waited for its turn.
            if (kept := await trio.to_thread.run_sync(self.kept.find, digest, shape.digest)) is not None:
                return await trio.to_thread.run_sync(self.kept.call, kept, name)
            begun = await trio.to_thread.run_sync(self.kept.begun, digest, shape.digest)
            for _ in range(MANIFESTS):
                resumed = bool(begun)
                try:
                    manifest = begun.pop() if resumed else await _manifest(asking, givers)
                    folder = await self._bring(manifest, title, shape, progress, find)
                    keep = partial(self.kept.keep, folder, digest, name, shape)
                    return await trio.to_thread.run_sync(keep)
                except NoCoverage as nobody:
                    error = error or _nobody(nobody)
                    if not givers.fail() and not resumed:
                        break
                except UnsupportedModel as unsupported:  # its peers may be of a later release
                    error = unsupported
                    givers.fail()
                except BadWeights as wrong:
                    error = wrong
                    for peer in givers.fail(refuted=True):
                        self.report.wrong.add(peer)
                        self._wrong.note(peer)
        raise error or AssertionError("no manifest was tried")

    async def _bring(
        self, manifest: Manifest, title: str, shape: ModelShape, progress: Progress, find: FindPeers
    ) -> Path:
        """Bring the files of a manifest; their folder."""
        folder = self.kept.folder(manifest, shape.digest)
        async with self.pulling(manifest.digest, title, progress, find) as pull:
            made = await trio.to_thread.run_sync(partial(PulledFolder, folder, manifest, ()))
            await pull.items(made, range(len(manifest.items)))
        return folder


class _Givers:
    """Who has sent which manifest of an adapter."""

    def __init__(self, digest: AdapterDigest) -> None:
        self.digest = digest
        self._of: defaultdict[Digest, set[PeerId]] = defaultdict(set)
        self.failed: set[PeerId] = set()
        """Those whose manifest has come to nothing."""
        self.tried: Manifest | None = None
        """The one that is tried now; ``None`` for one that was begun before."""
        self._refuted: set[Digest] = set()

    def take(self, peer: PeerId, raw: bytes) -> bool:
        """Whether a peer has sent what may be a manifest of the adapter."""
        try:
            adapter, manifest = read_adapter_manifest(raw)
        except BadWeights:
            return False
        if adapter != self.digest or manifest.digest in self._refuted:
            return False
        self._of[manifest.digest].add(peer)
        return True

    def fail(self, *, refuted: bool = False) -> set[PeerId]:
        """What is tried has come to nothing; who had sent it.

        Args:
            refuted: its files are here, and are not the adapter.
        """
        if self.tried is None:
            return set()
        if refuted:
            self._refuted.add(self.tried.digest)
        found = self._of.pop(self.tried.digest, set[PeerId]())
        self.failed |= found
        return found


async def _manifest(asking: Pull, givers: _Givers) -> Manifest:
    """A manifest of the adapter from a peer that has not failed yet."""
    givers.tried = None
    raw = await asking.manifest_bytes(Digest(givers.digest), givers.take)
    _, givers.tried = read_adapter_manifest(raw)
    return givers.tried


def _is_no_folder(text: str) -> bool:
    """Whether an adapter is asked for by its name or digest, and not by its path."""
    return is_key(text) and not Path(text).exists()


def _name_for(key: str, kept: KeptAdapter) -> str:
    """What an adapter is called that was asked for by ``key``."""
    return kept.names[0] if digest_key(key) else key


def _nobody(error: NoCoverage) -> NoCoverage:
    return NoCoverage(
        error.message,
        check="check that a node that serves it shares it: its setting share is not off, and its release "
        "lets adapters travel. Else copy its folder here. What has come is kept",
        next_command="shoal status",
    )
