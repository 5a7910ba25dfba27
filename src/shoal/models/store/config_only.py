"""A model by its config alone: no weights are fetched, and none are hashed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import Checkpoint, read_config
from shoal.models.seam.config import PretrainedConfig
from shoal.models.store.catalogue import close_names, find_entry
from shoal.models.store.describe import context_of
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore

STORED = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
"""How safetensors names what configs name as torch does."""


@dataclass(frozen=True, slots=True)
class Glance:
    """What a config tells."""

    name: str
    config: PretrainedConfig
    stored: str
    """The dtype of the weights, as safetensors names it; float32 where the config does not say."""
    context: int
    """The longest session, in tokens, that the model was made for."""
    model: LocalModel | None = None
    """The model, if it is here."""


def glance(store: ModelStore, name: str) -> Glance:
    """Look at a model that is here, a folder with a ``config.json``, or a hub id.

    Raises:
        UnknownModel: nothing of that name can be had.
        BadWeights, UnsupportedModel: the config is not one that we may run.
        OutOfResources: the disk is full.
    """
    entry = find_entry(name)
    names = {model.name.casefold() for model in store.list()}
    folder = Path(name).expanduser()
    if entry is None and name.casefold() not in names:
        if (folder / "config.json").is_file():
            return _of_folder(folder.resolve().name, folder)
        if name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not folder.exists():
            from shoal.models.store.sources.hub_client import fetch_config  # noqa: PLC0415 - slow, and only needed here

            return _of_folder(name, fetch_config(name, close_names(name, names)))
    model = store.show(name)
    return replace(_of_folder(model.name, model.path), model=model)


def _of_folder(name: str, folder: Path) -> Glance:
    config = read_model_config(Checkpoint(folder, read_config(folder), {}))
    dtype = str(config.dtype or "float32").removeprefix("torch.")
    return Glance(name, config, STORED.get(dtype, "F32"), context_of(config))
