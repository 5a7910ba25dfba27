"""`shoal bench`: what it prints, what it writes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.bench.swarm import session_counts
from tests.cli.conftest import Shoal, home, shoal

__all__ = ["home", "shoal"]

COMMANDS = ("device", "executor", "overhead", "swarm", "gateway", "peers", "accuracy", "proof", "compare")


def test_every_benchmark_prints_json(shoal: Shoal) -> None:
    for command in COMMANDS:
        assert "--json" in shoal("bench", command, "--help").out


@pytest.mark.usefixtures("measured_soon")
def test_the_executor_is_measured_in_a_format(shoal: Shoal, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    options = ("--model", str(folder), "--rounds", "1", "--threads", "1", "--format", "int8")
    options += ("--context", "600")
    ran = shoal("bench", "executor", *options, "--report", str(page), "--json")
    assert ran.code == 0, ran.out
    assert ran.data["machine"]["threads"] == 1
    names = [result["name"].removeprefix("executor/int8/") for result in ran.data["results"]]
    assert names == ["decode/b1", "decode/b8", "decode/b32", "prefill/512", "context/128", "context/600"]
    assert ran.data["results"][1]["vs"].keys() == {"b1"}
    assert ran.data["results"][5]["vs"].keys() == {"128 tokens"}
    assert page.read_text().startswith("<!doctype html>")


def test_a_proof_is_measured(shoal: Shoal, folder: Path) -> None:
    asked = ("bench", "proof", "--model", str(folder), "--rounds", "1", "--threads", "1", "--window", "1")
    found = shoal(*asked, "--json").data
    assert (found["format"], found["window"]) == ("int8", 1)
    assert found["past_bytes"] > 0
    assert 0 < found["argument_bytes"] < 1024 < found["bytes"]
    assert min(found["lay_open_s"], found["prove_s"], found["check_s"]) > 0
    assert "to check it" in shoal(*asked).out
    assert "proofs are of int8 and w8a8" in shoal(*asked, "--format", "int4").err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("executor", "--format", "int3"), "format is 'int3'"),
        (("peers", "--format", "fp32"), "llama.cpp is not compared in fp32"),
        (("peers", "--llama-cpp", "/nowhere"), "has no libllama"),
        (("peers", "--contexts", "1,2"), "contexts is '1,2'"),
        (("executor", "--device", "cuda:9"), "no device cuda:9"),
        (("accuracy", "--model", "no-such-model"), "no model is known"),
        (("swarm", "--rounds", "0"), "rounds"),
    ],
)
def test_what_cannot_be_measured_is_refused(shoal: Shoal, arguments: tuple[str, ...], said: str) -> None:
    ran = shoal("bench", *arguments, "--json")
    assert ran.code != 0
    assert said in json.loads(ran.out)["error"]["message"]


def test_sessions_double_up_to_the_most() -> None:
    assert session_counts(1) == [1]
    assert session_counts(6) == [1, 2, 4, 6]
    assert session_counts(32) == [1, 2, 4, 8, 16, 32]
