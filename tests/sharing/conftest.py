"""A model whose blocks are of several chunks each, and stores that have it or have nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import trio.testing
from safetensors.numpy import save_file

from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.checkpoint.digest import hash_model
from shoal.models.checkpoint.manifest import Manifest
from shoal.models.store import records
from shoal.models.store.folder_names import folder_name
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.sharing.shared_model import SharedModel
from shoal.types import ModelShape

BLOCKS = 4
NAME = "fish"


@dataclass(frozen=True)
class HeldModel:
    """A model that is here, as it may be shared."""

    store: ModelStore
    model: LocalModel
    manifest: Manifest
    shared: SharedModel

    def items(self, part: str) -> list[int]:
        """The items whose names begin so."""
        return [n for n, item in enumerate(self.manifest.items) if item.name.startswith(part)]


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> HeldModel:
    """Described by hand: no tokenizer's process is started, and no torch imported."""
    folder = tmp_path_factory.mktemp("whole")
    chance = np.random.default_rng(0)
    tensors = {"embed": chance.random((300, 64), np.float32), "norm": np.ones(64, np.float32)}
    for block in range(BLOCKS):
        tensors[f"model.layers.{block}.up.weight"] = chance.random((700, 900), np.float32)  # 2.4 MiB
        tensors[f"model.layers.{block}.down.weight"] = chance.random((500, 900), np.float32)  # 1.7 MiB
        tensors[f"model.layers.{block}.norm.weight"] = chance.random(900, np.float32)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    (folder / "tokenizer.json").write_text('{"a": 1}')
    (folder / "chat_template.jinja").write_text("")
    hashed = hash_model(open_checkpoint(folder))
    digest = hashed.manifest.digest
    shape = ModelShape(NAME, digest, BLOCKS, 64, 128, 300)
    model = LocalModel(NAME, folder, digest, shape, 1, "F32", f"folder:{folder}")
    store = ModelStore(tmp_path_factory.mktemp("models"))
    records.write(store.root / folder_name(NAME), model, hashed)
    return HeldModel(store, model, hashed.manifest, SharedModel.open(store, model))


@pytest.fixture
def patient_clock() -> trio.testing.MockClock:
    """One that waits for threads, which read and check what is pulled."""
    return trio.testing.MockClock(autojump_threshold=0.02)


@pytest.fixture
def chunk_of(whole: HeldModel) -> Callable[[int, int], bytes]:
    return whole.shared.chunk
