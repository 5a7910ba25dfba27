"""A Llama of two small blocks, written once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shoal import config
from shoal.bench.models import Shape, write_random
from shoal.config import Settings
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore

SMALL = Shape(blocks=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=120, context=1024)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("random") / "small"
    write_random(found, SMALL)
    return found


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> Settings:
    found = config.load({}, {"SHOAL_HOME": str(tmp_path)})
    return replace(found, model=str(folder), threads=1)


@pytest.fixture
def model(folder: Path, settings: Settings) -> LocalModel:
    return ModelStore(settings.paths.models).resolve(str(folder))
