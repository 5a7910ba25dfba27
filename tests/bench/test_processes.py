"""The benchmarks that start nodes: each measures what it names, and nobody is left running."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.bench.test_llama_cpp import fake
from tests.cli.conftest import Shoal, home, shoal

__all__ = ["fake", "home", "shoal"]

pytestmark = [pytest.mark.swarm, pytest.mark.usefixtures("measured_soon")]
OPTIONS = ("--nodes", "1", "--sessions", "2", "--rounds", "1", "--threads", "1", "--format", "bf16", "--json")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Whatever other tests have booted, these leave no process of theirs."""
    before = psutil.Process(os.getpid()).children()
    yield
    assert [child for child in psutil.Process(os.getpid()).children() if child not in before] == []


def test_the_swarm_is_measured_beside_one_process(shoal: Shoal, folder: Path) -> None:
    ran = shoal("bench", "swarm", "--model", str(folder), *OPTIONS)
    assert ran.code == 0, ran.err
    found = {result["name"]: result for result in ran.data["results"]}
    assert found["swarm/bf16/decode/b1"]["vs"].keys() >= {"one process"}
    assert all(result["value"] > 0 for result in found.values())


def test_the_start_of_a_node_is_measured_and_what_is_kept_can_be_compared(
    shoal: Shoal, folder: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json"
    options = ("--rounds", "1", "--threads", "1", "--format", "int8", "--save", str(kept), "--json")
    ran = shoal("bench", "start", "--model", str(folder), *options)
    assert ran.code == 0, ran.err
    found = {result["name"]: result for result in ran.data["results"]}
    assert list(found) == ["start/help", "start/int8/first", "start/int8/again", "start/int8/memory"]
    assert all(result["value"] > 0 for result in found.values())
    assert found["start/int8/again"]["vs"].keys() == {"first"}
    assert 20 < found["start/int8/memory"]["value"] < 2000
    changes = shoal("bench", "compare", str(kept), str(kept), "--json").data["changes"]
    assert {change["name"] for change in changes} >= {*found, "start/int8/again : first"}


def test_the_gateway_is_measured_beside_the_library(shoal: Shoal, folder: Path) -> None:
    ran = shoal("bench", "gateway", "--model", str(folder), *OPTIONS)
    assert ran.code == 0, ran.err
    found = {result["name"]: result for result in ran.data["results"]}
    ways = (
        "library/chat",
        *(f"gateway/{dialect}" for dialect in ("chat", "responses", "messages", "ollama")),
    )
    assert list(found) == [f"{way}/{sessions}" for sessions in ("b1", "b2") for way in ways]
    for name, result in found.items():
        assert result["vs"].keys() == ({"library"} if name.startswith("gateway") else set())
    assert all(result["value"] > 0 for result in found.values())


def test_a_comparison_that_was_stopped_goes_on_where_it_was(
    shoal: Shoal, home: Path, folder: Path, fake: Path, tmp_path: Path
) -> None:
    """A stand-in for llama.cpp ends the first run once the speeds are measured."""
    library = shutil.copytree(fake, tmp_path / "llama")
    options = (*OPTIONS[:-2], "int4", "--llama-cpp", str(library), "--contexts", "16,64", "--json")
    command = ("bench", "peers", "--model", str(folder), *options)
    (library / "stop").touch()
    ran = shoal(*command)
    assert ran.code != 0 and "cannot be rolled back" in ran.out
    assert "pip install language-pipes" in ran.err
    (library / "stop").unlink()
    ran = shoal(*command)
    assert ran.code == 0, ran.err
    assert "1 parts of it are measured" in ran.err and "starting 1 nodes" not in ran.err
    found = {result["name"]: result for result in ran.data["results"]}
    assert found["one/int4/decode/b1"]["vs"].keys() == {"llama.cpp Q4_0", "llama.cpp Q4_K_M"}
    assert found["one/int4/context/64"]["vs"].keys() == {"llama.cpp Q4_0", "llama.cpp Q4_K_M", "16 tokens"}
    for sessions in ("b1", "b2"):
        assert found[f"swarm/int4/decode/{sessions}"]["vs"].keys() == {"one process", "llama.cpp RPC Q4_0"}
    assert any("language-pipes is not measured" in note for note in ran.data["notes"])
    assert ran.data["bench"] == "peers" and "llama.cpp" in ran.data["versions"]
    assert not list((home / "cache" / "bench" / "runs").glob("*.json"))
