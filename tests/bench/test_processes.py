"""The benchmarks that start nodes: each measures what it names, and nobody is left running."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from tests.cli.conftest import Shoal, home, shoal

__all__ = ["home", "shoal"]

pytestmark = pytest.mark.swarm
OPTIONS = ("--nodes", "1", "--sessions", "2", "--rounds", "1", "--threads", "1", "--format", "bf16", "--json")


def test_the_swarm_is_measured_beside_one_process(shoal: Shoal, folder: Path) -> None:
    ran = shoal("bench", "swarm", "--model", str(folder), *OPTIONS)
    assert ran.code == 0, ran.err
    found = {result["name"]: result for result in ran.data["results"]}
    assert found["swarm/bf16/decode/b1"]["vs"].keys() >= {"one process"}
    assert all(result["value"] > 0 for result in found.values())
    assert psutil.Process(os.getpid()).children() == []


def test_the_gateway_is_measured_beside_the_library(shoal: Shoal, folder: Path) -> None:
    ran = shoal("bench", "gateway", "--model", str(folder), *OPTIONS)
    assert ran.code == 0, ran.err
    found = {result["name"]: result for result in ran.data["results"]}
    assert list(found) == ["library/chat/b1", "gateway/chat/b1", "library/chat/b2", "gateway/chat/b2"]
    for sessions in ("b1", "b2"):
        assert found[f"gateway/chat/{sessions}"]["vs"].keys() == {"library"}
    assert all(result["value"] > 0 for result in found.values())
    assert psutil.Process(os.getpid()).children() == []
