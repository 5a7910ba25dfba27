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
from shoal.planning import measure

SMALL = Shape(blocks=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=120, context=1024)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("random") / "small"
    write_random(found, SMALL)
    return found


@pytest.fixture
def measured_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is measured by small products and reads, which say little of it and take no time."""
    for side in ("ROWS", "OUT", "IN"):
        monkeypatch.setattr(measure, side, 256)
    monkeypatch.setattr(measure, "OPERATIONS", 2.0 * 256**3)
    monkeypatch.setattr(measure, "BUFFER", 8 << 20)
    monkeypatch.setattr(measure.read_bandwidth, "__defaults__", (8 << 20,))
    monkeypatch.setattr(measure, "LEAST_S", 0.01)


@pytest.fixture
def settings(folder: Path, tmp_path: Path) -> Settings:
    found = config.load({}, {"SHOAL_HOME": str(tmp_path)})
    return replace(found, model=str(folder), threads=1)


@pytest.fixture
def model(folder: Path, settings: Settings) -> LocalModel:
    return ModelStore(settings.paths.models).resolve(str(folder))
