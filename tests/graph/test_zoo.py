"""Graphs as they are met outside, in parts: all of them by ``python -m shoal.testing.zoo``, three here."""

from __future__ import annotations

from pathlib import Path

import pytest

from shoal.errors import UnknownModel
from shoal.models.graph.graph_store import GraphStore
from shoal.testing.graph_swarm import InProcessRunner
from shoal.testing.zoo.cutting import TREES, ZOO, cut_graph, write_graph
from shoal.testing.zoo.published import PUBLISHED, published_graph


@pytest.mark.parametrize("name", ["voice", "file-type", TREES])
async def test_a_graph_of_others_gives_the_bits_of_the_whole_in_two_three_and_five_parts(
    name: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(models)
    file, inputs = write_graph(name, tmp_path)
    graph = GraphStore(tmp_path / "graphs").resolve(str(file))
    found = await cut_graph(name, graph, inputs, tmp_path, [2, 3, 5], InProcessRunner)
    assert [(cut.parts, cut.same) for cut in found.cuts] == [(2, True), (3, True), (5, True)]


def test_every_published_graph_is_in_the_wheels_that_are_locked(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(ZOO) == 15
    monkeypatch.syspath_prepend(models)
    assert all(published_graph(name).stat().st_size > 100_000 for name in PUBLISHED)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal.testing.zoo.published.find_spec", lambda name: None)
    with pytest.raises(UnknownModel) as raised:
        published_graph("voice")
    assert raised.value.check.endswith("pip install --no-deps silero-vad")
