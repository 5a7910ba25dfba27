"""Weights as they are published: read where they lie, and served by the values that the file means."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from shoal.executor.ends import EndsRunner
from shoal.executor.kernels import c_kernels
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.runner import Runner, SessionRows
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.types import Format, Span

from ..models.ggufs import read_folder, write_family

THIRDS = (Span(0, 2), Span(2, 4), Span(4, 6))
TOKENS = [1, 5, 40, 3, 7, 260, 11, 12, 13, 90]

built = pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")


def dequantised(model: LocalModel, folder: Path) -> LocalModel:
    """The same model as float32 safetensors."""
    folder.mkdir()
    save_file(read_folder(model.path), folder / "model.safetensors", metadata={"format": "pt"})
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((model.path / name).read_bytes())
    return ModelStore(folder / "store").resolve(str(folder))


def logits(model: LocalModel, format: Format, cache: Path) -> np.ndarray:
    """Logits ``[tokens, vocab]`` through three spans: most of the tokens, then the others one by one."""
    ends: EndsRunner = load_ends_runner(model, format, threads=1, cache=cache)
    runners: list[Runner] = [
        load_runner(model, span, format, kv="auto", threads=1, cache=cache) for span in THIRDS
    ]
    states = [runner.open(runner.span, runner.make_pool(64).promise(64)) for runner in runners]
    outs: list[np.ndarray] = []
    position = 0
    for piece in (TOKENS[:6], *([token] for token in TOKENS[6:])):
        hidden = ends.embed(piece, position)
        for runner, state in zip(runners, states, strict=True):
            (out,) = runner.forward([SessionRows(state, position, hidden, len(TOKENS))])
            assert isinstance(out, np.ndarray), out
            hidden = out
        (out,) = ends.heads([hidden])
        assert isinstance(out, np.ndarray)
        outs.append(out)
        position += len(piece)
    return np.concatenate(outs)


@pytest.fixture(scope="module", params=["llama", "llama_untied", "gemma3", "phi3"])
def published(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalModel, LocalModel]:
    """A model out of a GGUF file, and its float32 copy."""
    folder = tmp_path_factory.mktemp(request.param)
    write_family(folder / "m.gguf", folder / "hf", request.param)
    model = ModelStore(folder / "store").resolve(str(folder / "m.gguf"))
    return model, dequantised(model, folder / "copy")


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8", "int4"])
def test_a_gguf_file_read_in_place_gives_the_bits_of_its_float32_copy(
    published: tuple[LocalModel, LocalModel], format: Format, tmp_path: Path
) -> None:
    model, copy = published
    assert model.dtype == "Q4_1"
    assert model.digest != copy.digest
    found = logits(model, format, tmp_path / "cache")
    expected = logits(copy, format, tmp_path / "cache")
    if format == "fp32":  # torch's: the last bit depends on where in memory a matrix begins
        assert np.abs(found - expected).max() < 1e-5
    else:
        assert np.array_equal(found, expected)
    assert np.isfinite(found).all()
    assert torch.from_numpy(found).std() > 0
