"""Simulated time, and swarms of members in it."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest

from shoal.testing.sim.clock import SimClock
from shoal.testing.sim.peers import SimPeers


@pytest.fixture
def clock() -> SimClock:
    """pytest-trio runs the test by it."""
    return SimClock()


@asynccontextmanager
async def swarm_of(count: int, seed: int = 1) -> AsyncGenerator[SimPeers]:
    """So many members who know each other."""
    async with SimPeers.running(random.Random(seed)) as peers:
        for _ in range(count):
            await peers.join()
        yield peers
