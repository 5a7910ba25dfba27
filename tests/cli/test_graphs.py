"""Graphs on the command line: what was imported, and what is refused before a swarm is entered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shoal import config
from shoal.errors import EXIT_FAILURE, EXIT_USAGE
from shoal.models.graph.graph_store import GraphStore
from shoal.testing.graphs import write_mlp

from .conftest import Shoal


def test_imported_graphs_are_listed_shown_and_removed(shoal: Shoal, home: Path, tmp_path: Path) -> None:
    file = write_mlp(tmp_path / "mlp.onnx", layers=2)
    GraphStore(config.load({}).paths.graphs).resolve(str(file))
    (listed,) = [model for model in shoal("models", "list", "--json").data["models"] if model["here"]]
    assert (listed["name"], listed["kind"], listed["segments"]) == ("mlp", "graph", 5)
    assert "mlp" in shoal("models", "list").out
    shown = shoal("models", "show", "mlp", "--json").data
    assert shown["inputs"] == ["features float32 any×32", "offset float32 any×32"]
    assert (shown["size"], shown["threads"]) == (2 * 32 * 32 * 4, 1)
    assert shoal("models", "rm", "mlp", "--json").data == {"removed": "mlp"}
    assert file.exists()
    assert shoal("models", "show", "mlp").code == EXIT_FAILURE


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        (["serve", "nothing.onnx"], "there is no file"),
        (["up", "--model", "graph.onnx"], "shoal up serves language models"),
        (["infer", "graph.onnx", "--input", "x=nothing.npy"], "there is no file"),
        (["infer", "graph.onnx", "--input", "x=x.npy", "--output", "out.txt"], "must end in .npz or .npy"),
        (["infer", "graph.onnx"], "--input"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    argv: list[str], why: str, shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros(1))
    ran = shoal(*argv)
    assert ran.code in (EXIT_USAGE, EXIT_FAILURE)
    assert why in ran.err
