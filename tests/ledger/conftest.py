"""The chains, started once for all tests that only add to them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ledger.engines import Engine, anvil, in_process


@pytest.fixture(scope="session")
def anvil_engine() -> Iterator[Engine]:
    with anvil() as engine:
        yield engine


@pytest.fixture(scope="session")
def process_engine() -> Engine:
    return in_process()


@pytest.fixture(params=["process_engine", "anvil_engine"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Either chain."""
    return request.getfixturevalue(request.param)
