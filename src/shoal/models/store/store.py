"""The models on this machine: one folder each, with a record, and what was made of a GGUF file here.

A local folder, a GGUF file or a snapshot of the hub is only referred to. Importing this takes no time: torch
and transformers come in when a model is fetched or has changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from filelock import FileLock

from shoal.errors import UnknownModel
from shoal.models.checkpoint.digest import HashedModel, files_fingerprint
from shoal.models.checkpoint.parts import missing_parts, part_entries, pulled_digest, read_pulled
from shoal.models.store import records
from shoal.models.store.catalogue import close_names, find_entry, full_name
from shoal.models.store.disk import check_free, told_if_full
from shoal.models.store.folder_names import comparable_name, folder_name, former_folder_name
from shoal.models.store.local_model import LocalModel
from shoal.models.store.sources.catalogue import CatalogueSource
from shoal.models.store.sources.folder import FolderSource, origin_id
from shoal.models.store.sources.hub import HubSource
from shoal.models.store.sources.source import Offer, Source
from shoal.progress import Progress, silent
from shoal.types import DIGEST, Digest


class ModelStore:
    """Models under ``root``. Processes may share it: what changes a model holds that model's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sources: tuple[Source, ...] = (
            CatalogueSource(root / ".downloads"),
            FolderSource(),
            HubSource(self._close_names),
        )
        """Where models come from. A name is the first one's that identifies it."""

    def list(self) -> list[LocalModel]:
        """Every model that is here, by name, as it was when it was last used."""
        if not self.root.is_dir():
            return []
        found = [
            records.read(folder) for folder in sorted(self.root.iterdir()) if not folder.name.startswith(".")
        ]
        return sorted((model for model in found if model), key=lambda model: model.name.casefold())

    def show(self, name: str) -> LocalModel:
        """A model that is here, or can be referred to where it is.

        Raises:
            UnknownModel: it is not here; names the close ones and how to get it.
        """
        if (model := self.find(name)) is not None:
            with told_if_full(self.root, name):
                return self._fresh(model, silent)
        source, _ = self._meant(name)
        if source is not None and source.local:
            return self.pull(name)
        raise self._unknown(name, fetchable=find_entry(name) is not None)

    def is_here(self, name: str) -> bool:
        """Whether a name means a model that is here, or can be referred to where it is on this machine."""
        source, _ = self._meant(name)
        return (source is not None and source.local) or self.find(name) is not None

    def shared_files(self, model: LocalModel) -> Path:
        """The folder with a model's manifest and the hashes of its chunks."""
        return records.shared_files(self._folder(model.name), model)

    def shared_folder(self, name: str, digest: Digest) -> tuple[str, Path]:
        """Where the files of a model that comes from peers are to be, and what it is called here.

        Args:
            name: what it is called elsewhere; another model that has or begins to have it here keeps it.
        """
        origin = f"peers:{digest}"
        taken = {comparable_name(model.name): model for model in self.list()}
        for candidate in itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2))):
            other = taken.get(comparable_name(candidate))
            folder = self.root / folder_name(candidate) / records.WEIGHTS
            if (other is None or other.source == origin) and pulled_digest(folder) in (None, digest):
                return candidate, folder
        raise AssertionError("numbers have no end")

    def keep_shared(self, name: str, digest: Digest, progress: Progress = silent) -> LocalModel:
        """Record a model that comes from peers, once its manifest, config and text files are here.

        Raises:
            BadWeights, UnsupportedModel: it is damaged, or one that we cannot run.
            OutOfResources: the disk is full.
        """
        name, folder = self.shared_folder(name, digest)
        with told_if_full(self.root, name), self._lock(name):
            model, hashed = _describe(folder, name, f"peers:{digest}", progress)
            records.write(folder.parent, model, hashed)
            return model

    def resolve(self, name: str, progress: Progress = silent) -> LocalModel:
        """A model, fetched first if it is not here.

        Args:
            name: of the catalogue or of this store, a folder, a GGUF file, or a hub id.

        Raises:
            UnknownModel, BadWeights, UnsupportedModel, OutOfResources: see :meth:`pull`.
        """
        model = self.find(name)
        if model is None:
            return self.pull(name, progress)
        with told_if_full(self.root, name):
            return self._fresh(model, progress)

    def pull(self, name: str, progress: Progress = silent) -> LocalModel:
        """Fetch a model, or refer to it where it is. One that is here already is fetched no second time.

        Raises:
            UnknownModel: nothing of that name can be had.
            BadWeights: what came is damaged, truncated or not what the catalogue says.
            UnsupportedModel: it is a model that we will not or cannot run.
            OutOfResources: the disk is too small. Nothing is left behind but what was downloaded, with which
                the next pull goes on.
        """
        with told_if_full(self.root, name):
            return self._pull(name, progress)

    def _pull(self, name: str, progress: Progress) -> LocalModel:
        source, id = self._meant(name)
        if source is None or not source.local:
            model = self.find(name)
            if model is not None and (source is None or _is_whole(model)):
                return self._fresh(model, progress)
        if source is None:
            raise self._unknown(name, fetchable=False)
        return self._fetch(source, source.offer(id), progress)

    def check(self, name: str) -> None:
        """Find out at once whether a name can be a model: here, of the catalogue, a path, or like a hub id.

        Raises:
            UnknownModel: it can be none; names the close ones.
        """
        if self._meant(name)[0] is None and self.find(name) is None and not DIGEST.fullmatch(name):
            raise self._unknown(name, fetchable=False)

    def rm(self, name: str) -> LocalModel:
        """Remove a model: what was converted here; folders and hub snapshots that it refers to stay.

        Raises:
            UnknownModel: it is not here.
            OutOfResources: the disk is full.
        """
        model = self.find(name)
        if model is None:
            raise self._unknown(name, fetchable=False)
        with told_if_full(self.root, "a lock"), self._lock(model.name):
            folder = self._folder(model.name)
            (folder / records.RECORD).unlink(missing_ok=True)  # from here on it is gone for everyone
            shutil.rmtree(folder, ignore_errors=True)
        return model

    def _fetch(self, source: Source, offer: Offer, progress: Progress) -> LocalModel:
        """Have a model brought, unless it is here by now, and describe it where it is or convert it."""
        name = self._free_name(offer)
        instead = offer
        with self._lock(name):
            if (known := self._of_origin(offer.origin)) is not None:
                return self._fresh(known, progress)
            if self._free_name(offer) == name:  # else another model has got it while we waited
                with self._partial(name, offer.disk) as partial:
                    (scratch := partial / "scratch").mkdir()
                    brought = source.fetch(offer, scratch, progress)
                    if isinstance(brought, Path):
                        return self._keep(brought, name, offer, partial, progress)
                    instead = brought
        return self._fetch(source, instead, progress)

    def _keep(self, brought: Path, name: str, offer: Offer, partial: Path, progress: Progress) -> LocalModel:
        """Refer to a folder; make one of a GGUF file. Its name's lock is held."""
        if brought.is_dir():
            model, hashed = _describe(brought, name, offer.origin, progress)
            records.write(self._folder(name), model, hashed)
            return model
        from shoal.models.store.convert_apart import GgufConverter  # noqa: PLC0415 - only needed here

        with closing(GgufConverter(brought)) as converter:
            needed = offer.disk or converter.size()
            if not offer.disk:
                check_free(self.root, name, needed)
            with told_if_full(self.root, name, lambda: needed):
                ours = brought.is_relative_to(partial)
                converter.convert(partial / records.WEIGHTS, progress, take=ours)
        with told_if_full(self.root, name, lambda: needed):
            shutil.rmtree(partial / "scratch")
            model, hashed = _describe(partial / records.WEIGHTS, name, offer.origin, progress)
            records.write(partial, model, hashed)
            before, final = self._folder(name), self.root / folder_name(name)
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        if before != final:
            shutil.rmtree(before, ignore_errors=True)
        return dataclasses.replace(model, path=final / records.WEIGHTS)

    def _fresh(self, model: LocalModel, progress: Progress) -> LocalModel:
        """The model as it is now: hashed again when a file of it has changed."""
        if not model.path.is_dir():
            raise UnknownModel(
                f"{model.name} is gone from {model.path}",
                check="check whether the folder was moved",
                next_command=f"shoal models rm {model.name}",
            )
        record = records.raw(self._folder(model.name))
        if record is not None and record.get("fingerprint") == files_fingerprint(model.path):
            return model
        if (changed := _changed_file(model)) is not None:
            return self._fetch(*changed, progress)
        model, hashed = _describe(model.path, model.name, model.source, progress)
        records.write(self._folder(model.name), model, hashed)
        return model

    def _meant(self, name: str) -> tuple[Source | None, str]:
        """The first source that identifies a name, and what it is there."""
        found = ((source, source.identify(name)) for source in self.sources)
        return next(((source, id) for source, id in found if id is not None), (None, ""))

    def find(self, name: str) -> LocalModel | None:
        """The model that is here by that name or digest, or that came from there, as it was last used.

        A bare name is a name before it is a path.
        """
        if DIGEST.fullmatch(name):
            return next((model for model in self.list() if model.digest == name), None)
        source, id = self._meant(name)
        models = self.list()
        if source is None or not source.local or not any(separator in name for separator in "/\\"):
            wanted = comparable_name(full_name(name))
            named = next((model for model in models if comparable_name(model.name) == wanted), None)
            if named is not None:
                return named
        return next((model for model in models if source and origin_id(model.source) == id), None)

    def _of_origin(self, origin: str) -> LocalModel | None:
        """The whole model that came from just there."""
        return next((model for model in self.list() if model.source == origin and _is_whole(model)), None)

    def _free_name(self, offer: Offer) -> str:
        """The name of what is offered, or with a number behind it when a model from elsewhere has it."""
        if offer.exclusive:
            return offer.name
        origin = origin_id(offer.origin)
        taken = {comparable_name(model.name): origin_id(model.source) for model in self.list()}
        numbered = (f"{offer.name}-{number}" for number in itertools.count(2))
        return next(
            candidate
            for candidate in itertools.chain([offer.name], numbered)
            if find_entry(candidate) is None and taken.get(comparable_name(candidate), origin) == origin
        )

    def _close_names(self, name: str) -> list[str]:
        return close_names(name, [model.name for model in self.list()])

    def _unknown(self, name: str, *, fetchable: bool) -> UnknownModel:
        if fetchable:
            return UnknownModel(
                f"{name} is not on this machine yet", next_command=f"shoal models pull {name}"
            )
        close = self._close_names(name)
        hint = f"; close names: {', '.join(close)}" if close else ""
        return UnknownModel(
            f"no model is known as {name!r}{hint}",
            check="check the name; a folder or a .gguf file needs its path, a hub model its owner/name, "
            "a GGUF file of the hub its owner/name/file.gguf",
            next_command=f"shoal run {close[0]}" if close else "shoal models list",
        )

    def _folder(self, name: str) -> Path:
        """The folder of the model of exactly that name, or the one that it is to have."""
        folder = self.root / folder_name(name)
        former = self.root / former_folder_name(name)
        recorded = None if (folder / records.RECORD).exists() else records.read(former)
        return former if recorded is not None and recorded.name == name else folder

    @contextmanager
    def _lock(self, name: str) -> Generator[None]:
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(locks / f"{folder_name(name)}.lock"):
            yield

    @contextmanager
    def _partial(self, name: str, needed: int) -> Generator[Path]:
        """A folder to fill, gone afterwards unless it was moved. Others' are dead: the lock is held."""
        prefix = f".partial-{folder_name(name)}-"
        for left in self.root.glob(f"{prefix}*"):
            shutil.rmtree(left, ignore_errors=True)
        check_free(self.root, name, needed)
        partial = self.root / f"{prefix}{os.getpid()}"
        partial.mkdir()
        try:
            with told_if_full(self.root, name, lambda: needed):
                yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _is_whole(model: LocalModel) -> bool:
    files = model.path.glob("*.gguf")
    if not (model.path / "config.json").is_file() or not all(file.is_file() for file in files):
        return False
    manifest = read_pulled(model.path) if model.source.startswith("peers:") else None
    return manifest is None or not missing_parts(part_entries(model.path, manifest).values())


def _changed_file(model: LocalModel) -> tuple[Source, Offer] | None:
    """What a model is to be made of anew, if it is read from a GGUF file of this machine that has changed."""
    source, path = FolderSource(), origin_id(model.source)
    if not model.source.startswith("gguf:") or source.identify(path) is None:
        return None
    offer = source.offer(path)
    return (source, offer) if offer.origin != model.source else None


def _describe(folder: Path, name: str, source: str, progress: Progress) -> tuple[LocalModel, HashedModel]:
    from shoal.models.store.describe import describe  # noqa: PLC0415 - imports transformers

    progress("Reading the config", 0, 0)
    return describe(folder, name, source, progress)
