"""Models of the Hugging Face hub, by ``owner/name`` or ``owner/name/file.gguf``.

They lie in the hub's own cache, which is shared with other programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from shoal.errors import UnknownModel
from shoal.models.gguf.names import shard_names, whole_name
from shoal.models.store.sources.source import Offer
from shoal.progress import Progress

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
FILE = re.compile(REPOSITORY.pattern + r"/(?!\.)(?:[^/\\\0]+/)*[^/\\\0]+\.gguf", re.ASCII | re.IGNORECASE)


class HubSource:
    """The hub. Its client takes long to import, which is done when something is fetched."""

    local = False

    def __init__(self, close_names: Callable[[str], list[str]]) -> None:
        """
        Args:
            close_names: those that are known and look like the one of a model that the hub does not have.
        """
        self._close_names = close_names

    def identify(self, name: str) -> str | None:
        return name if REPOSITORY.fullmatch(name) or FILE.fullmatch(name) else None

    def offer(self, id: str) -> Offer:
        if REPOSITORY.fullmatch(id):
            return Offer(name=id, origin=f"hub:{id}")
        path = PurePosixPath(id)
        first = shard_names(path.name)[0]
        return Offer(name=whole_name(first), origin=f"hub:{path.with_name(first)}")

    def fetch(self, offer: Offer, scratch: Path, progress: Progress) -> Path | Offer:
        from shoal.models.store.sources import hub_client  # noqa: PLC0415 - slow to import

        name = offer.origin.removeprefix("hub:")
        if not REPOSITORY.fullmatch(name):
            owner, repository, file = name.split("/", 2)
            return hub_client.fetch_gguf_files(f"{owner}/{repository}", file, progress)
        folder = hub_client.fetch_snapshot(name, progress, self._close_names(name))
        if any(folder.glob("*.safetensors")) or not (files := hub_client.gguf_models(name)):
            return folder
        if len(files) == 1:
            return self.offer(f"{name}/{files[0]}")
        raise UnknownModel(
            f"{name} holds {len(files)} models as GGUF files: {', '.join(files)[:500]}",
            check="choose one of them and give its name after the repository's",
            next_command=f"shoal models pull {name}/{files[0]}",
        )
