"""Models that lie on this machine: a folder as transformers loads it, or a GGUF file."""

from __future__ import annotations

from pathlib import Path

from shoal.errors import BadWeights
from shoal.models.gguf.names import shard_names, shards, whole_name
from shoal.models.store.sources.source import Offer
from shoal.progress import Progress


class FolderSource:
    """Folders and files by their path. A folder stays where it is."""

    local = True

    def identify(self, name: str) -> str | None:
        path = local_path(name)
        return str(path) if path is not None else None

    def offer(self, id: str) -> Offer:
        path = Path(id)
        if path.is_dir():
            return Offer(name=path.name or "model", origin=f"folder:{path}")
        stats = [shard.stat() for shard in shards(path)]
        size, changed = sum(stat.st_size for stat in stats), max(stat.st_mtime_ns for stat in stats)
        return Offer(name=whole_name(path.name), origin=f"gguf:{path}:{size}:{changed}")

    def fetch(self, offer: Offer, scratch: Path, progress: Progress) -> Path:
        return Path(origin_id(offer.origin))


def local_path(name: str) -> Path | None:
    """The folder, or the first GGUF file, that ``name`` means, if it means one."""
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and (file := _first_shard(path)) is not None:
        return file.resolve()
    looks = name.startswith(("/", "./", "../", "~")) or name.endswith("/")
    is_model = (path / "config.json").is_file() or (looks and path.is_dir())
    return path.resolve() if is_model else None


def origin_id(origin: str) -> str:
    """The path or id in an origin; that of a GGUF file is followed by its size and time of change."""
    kind, _, found = origin.partition(":")
    return found.rsplit(":", 2)[0] if kind == "gguf" else found


def _first_shard(file: Path) -> Path | None:
    """The first that is there of the files of which ``file`` is one; None if none is."""
    try:
        names = shard_names(file.name)
    except BadWeights:
        names = [file.name]
    return next((path for path in map(file.with_name, names) if path.is_file()), None)
