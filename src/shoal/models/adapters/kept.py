"""The adapters of this machine that came from peers, each in a folder as PEFT writes it, for one model.

What a folder holds says its ``shoal.json``, which is written last: a folder without it is on its way in.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from shoal.errors import BadWeights, DigestMismatch, UnsupportedModel
from shoal.models.adapters.files import MAX_ADAPTER_MANIFEST, MOST, read_adapter_manifest
from shoal.models.adapters.names import named_by, only_one
from shoal.models.adapters.read import BASE_FILE, read_adapter
from shoal.models.checkpoint.json_file import SizeLimit, read_object
from shoal.models.checkpoint.manifest import Manifest
from shoal.models.checkpoint.parts import MANIFEST
from shoal.types import AdapterDigest, Digest, ModelShape
from shoal.whole_file import write_whole

RECORD_LIMIT = SizeLimit(1 << 16, 100)
MAX_NAMES = 16


@dataclass(frozen=True, slots=True)
class KeptAdapter:
    """One that is here."""

    folder: Path
    digest: AdapterDigest
    base: Digest
    """The model that it is for."""
    model: str
    """What that was called when it came."""
    names: tuple[str, ...]
    """What it was asked for by, the first one first."""

    @property
    def title(self) -> str:
        """What it is called with its model's name."""
        return f"{self.model}:{self.names[0]}"

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum((self.folder / name).stat().st_size for name in MOST)

    def called(self, key: str) -> bool:
        """Whether ``key`` names it: one of its names, or the beginning of its digest."""
        is_meant = named_by(key)
        return any(is_meant(name, self.digest) for name in self.names)


class KeptAdapters:
    """The folder of all of them. Blocks."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def list(self) -> list[KeptAdapter]:
        """All that are whole; a folder that cannot be read is none of them."""
        folders = sorted(self.root.glob("[!.]*")) if self.root.is_dir() else []
        return [found for folder in folders if (found := _read(folder)) is not None]

    def find(self, key: str, base: Digest) -> KeptAdapter | None:
        """The adapter of a model by its name or digest. Raises UsageError: there are several."""
        found = {kept.digest: kept for kept in self.list() if kept.base == base and kept.called(key)}
        only_one(key, list(found), "here are", f"--adapter {key}=")
        return next(iter(found.values()), None)

    def begun(self, digest: AdapterDigest, base: Digest) -> list[Manifest]:
        """The manifests of what is on its way in."""
        found: list[Manifest] = []
        for folder in sorted(self.root.glob(f"{base[7:23]}-*")):
            try:
                with (folder / MANIFEST).open("rb") as stream:
                    adapter, manifest = read_adapter_manifest(stream.read(MAX_ADAPTER_MANIFEST + 1))
            except (OSError, BadWeights):
                continue
            # Of another adapter, or moved here by somebody: not what a pull would go on with.
            if adapter == digest and folder == self.folder(manifest, base):
                found.append(manifest)
        return found

    def folder(self, manifest: Manifest, base: Digest) -> Path:
        """Where the files of a manifest are to be, for a model."""
        return self.root / f"{base[7:23]}-{manifest.digest[7:39]}"

    def keep(self, folder: Path, digest: AdapterDigest, name: str, shape: ModelShape) -> KeptAdapter:
        """Record an adapter whose files have come, or forget them where they are not what they should be.

        Args:
            folder: where they are.
            digest: by which it was asked for.
            name: what it is to be called.

        Raises:
            BadWeights, UnsupportedModel: they are damaged, or of a kind that is not computed here.
            DigestMismatch: they are another adapter, or one of another model.
            OSError: the disk is full.
        """
        try:
            adapter = read_adapter(folder, name)
            if adapter.digest != digest:
                raise BadWeights(
                    f"what came as the adapter {name} is another one: {adapter.digest[:19]}…, and not "
                    f"{digest[:19]}…",
                    check="fetch it from peers that you trust, or copy its folder here",
                )
            adapter.check_model(shape)
        except (BadWeights, DigestMismatch, UnsupportedModel):
            shutil.rmtree(folder, ignore_errors=True)
            raise
        kept = KeptAdapter(folder, digest, shape.digest, shape.name, (name,))
        _write(kept)
        for other in self.begun(digest, shape.digest):
            if (left := self.folder(other, shape.digest)) != folder and _read(left) is None:
                shutil.rmtree(left, ignore_errors=True)
        return kept

    def call(self, kept: KeptAdapter, name: str) -> KeptAdapter:
        """Have an adapter found by one more name. Raises OSError: the disk is full."""
        if name in kept.names or len(kept.names) >= MAX_NAMES:
            return kept
        named = replace(kept, names=(*kept.names, name))
        _write(named)
        return named

    def rm(self, key: str, model: str) -> KeptAdapter | None:
        """Remove an adapter by its name or digest and its model's; ``None`` where there is none.

        Raises:
            UsageError: there are several.
        """
        wanted = [k for k in self.list() if model in (k.model, k.base) and k.called(key)]
        only_one(key, [kept.digest for kept in wanted], "here are", f"{model}:")
        for kept in wanted:
            (kept.folder / BASE_FILE).unlink(missing_ok=True)  # from here on it is gone for everyone
            shutil.rmtree(kept.folder, ignore_errors=True)
        return next(iter(wanted), None)


def _write(kept: KeptAdapter) -> None:
    said = {"base": kept.base, "model": kept.model, "adapter": kept.digest, "names": kept.names}
    write_whole(kept.folder / BASE_FILE, json.dumps(said).encode(), replace=True)


def _read(folder: Path) -> KeptAdapter | None:
    file = folder / BASE_FILE
    if not file.is_file() or not all((folder / name).is_file() for name in MOST):
        return None
    try:
        said = read_object(file, RECORD_LIMIT)
    except BadWeights:
        return None
    base, digest, model, names = (said.get(key) for key in ("base", "adapter", "model", "names"))
    if not (isinstance(base, str) and isinstance(digest, str) and isinstance(model, str)):
        return None
    if not (isinstance(names, list) and names and all(isinstance(name, str) for name in names)):
        return None
    return KeptAdapter(folder, AdapterDigest(digest), Digest(base), model, tuple(names))
