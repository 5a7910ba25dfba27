from __future__ import annotations

import pytest

from shoal.gateway.stored.batches import runner as runner_module
from shoal.gateway.stored.batches.store import BatchStore
from shoal.gateway.stored.expiry import Keeping
from shoal.gateway.stored.files import FileStore

from .stored import Days


@pytest.fixture
def days():
    return Days()


@pytest.fixture
def store(database, days, monkeypatch):
    monkeypatch.setattr(runner_module, "LOOK_EVERY_S", 0.01)
    return BatchStore(FileStore(database, Keeping(30, days)))
