"""Graphs on the command line: what was imported, and what is refused before a swarm is entered."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shoal import config
from shoal.cli.graph.infer import FAST_NOTE
from shoal.client.graph import encrypted_rows
from shoal.client.graph.input_files import read_given
from shoal.client.swarm import Swarm
from shoal.errors import EXIT_FAILURE, EXIT_USAGE
from shoal.models.graph.graph_store import GraphStore
from shoal.testing.encrypted.in_process import InProcessKey, InProcessMap
from shoal.testing.graph_bits import whole
from shoal.testing.graph_swarm import equal_spans, graph_swarm
from shoal.testing.graphs import write_cnn, write_linear, write_mlp
from shoal.types import Span

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
        (["infer", "graph.onnx", "--input", "x=nothing.png"], "there is no file"),
        (["infer", "graph.onnx", "--input", "x=x.npy", "--preprocess", "no=1"], "preprocessing has no 'no'"),
        (["infer", "graph.onnx"], "--input"),
        (["serve", "SmolLM2-135M-Instruct", "--fast"], "--fast is for graphs"),
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


def test_a_graph_is_served_by_its_name_or_digest_and_may_be_served_fast(
    shoal: Shoal, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_mlp(tmp_path / "mlp.onnx", layers=2)
    graph = GraphStore(config.load({}).paths.graphs).resolve(str(file))
    served: list[tuple[str, bool]] = []

    async def serve(settings: config.Settings, span: Span | None, *, as_json: bool) -> int:
        served.append((settings.model, settings.fast))
        return 0

    monkeypatch.setattr("shoal.cli.graph.serve.serve_graph", serve)
    for name in (graph.digest, "mlp"):
        assert shoal("serve", name, "--fast").code == 0
    assert served == [(graph.digest, True), ("mlp", True)]


def test_a_picture_is_asked_about(
    shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Over a swarm in memory, which is there when the command enters one."""
    file = write_cnn(tmp_path / "cnn.onnx")
    Image.effect_noise((20, 12), 80).convert("RGB").save(tmp_path / "cat.png")
    graph = GraphStore(config.load({}).paths.graphs).resolve(str(file))
    fast: list[bool] = []

    @asynccontextmanager
    async def enter(settings: config.Settings) -> AsyncGenerator[Swarm]:
        fast.append(settings.fast)
        spans = equal_spans(len(graph.manifest.segments), 2)
        async with graph_swarm(home, graph, spans, fast=settings.fast) as swarm:
            yield swarm.client

    monkeypatch.setattr("shoal.cli.enter.enter_swarm", enter)
    how = "mean=0.5,std=0.5,resample=nearest"
    argv = ["infer", str(file), "--input", f"images={tmp_path}/cat.png", "--preprocess", how, "--json"]
    said = shoal(*argv).data
    given = read_given(graph.manifest, {"images": tmp_path / "cat.png"}, how)
    expected = whole(graph, {"images": np.asarray(given["images"])})["probabilities"]
    assert np.array_equal(np.array(said["outputs"]["probabilities"]["data"], np.float32), expected)
    ran = shoal(*argv[:-1], "--fast")
    assert ran.code == 0
    assert FAST_NOTE in ran.err
    assert fast == [False, True]


def test_a_linear_model_is_asked_with_encrypted_inputs(
    shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """As above."""
    file, other = write_linear(tmp_path / "fraud.onnx"), write_mlp(tmp_path / "mlp.onnx", layers=2)
    graph = GraphStore(config.load({}).paths.graphs).resolve(str(file))
    rows = np.random.default_rng(0).standard_normal((3, 30)).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    monkeypatch.setattr(encrypted_rows, "SecretProcess", InProcessKey)

    @asynccontextmanager
    async def enter(settings: config.Settings) -> AsyncGenerator[Swarm]:
        async with graph_swarm(home, graph, [Span(0, 1)], make_map_runner=InProcessMap) as swarm:
            yield swarm.client

    monkeypatch.setattr("shoal.cli.enter.enter_swarm", enter)
    argv = ["infer", str(file), "--input", f"features={tmp_path}/rows.npy", "--encrypted"]
    ran = shoal(*argv, "--json")
    found = np.array(ran.data["outputs"]["scores"]["data"])
    assert np.abs(found - whole(graph, {"features": rows})["scores"]).max() < 1e-3
    assert ran.data["encrypted"]["parameters"] == "ckks-8192-60-60-60"
    assert "inputs and outputs were encrypted" in ran.err
    refused = shoal("infer", str(other), *argv[2:])
    assert refused.code == EXIT_USAGE and "cannot be run on encrypted inputs" in refused.err
    assert shoal("models", "show", "fraud", "--json").data["encryptable"] is True
