"""``MODEL:ADAPTER``: a model's name with that of an adapter behind it. Pure but for a look at the disk."""

from __future__ import annotations

from pathlib import Path

from shoal.models.adapters.adapter import NAME
from shoal.models.store.catalogue import find_entry
from shoal.models.store.store import DIGEST


def split_name(model: str) -> tuple[str, str | None]:
    """The name of the model itself, and that of an adapter, if one is named.

    What is a path, a digest or a name of the catalogue with its colon names no adapter.
    """
    base, _, adapter = model.rpartition(":")
    if not base or NAME.fullmatch(adapter) is None or DIGEST.fullmatch(model) or find_entry(model):
        return model, None
    try:
        return (model, None) if Path(model).expanduser().exists() else (base, adapter)
    except OSError:  # no path can be that long
        return base, adapter
