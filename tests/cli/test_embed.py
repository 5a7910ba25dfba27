"""`shoal embed`: vectors on stdout or in a file, over three nodes in memory."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import trio

from shoal.cli import embed
from shoal.testing.encoders import write_encoder, write_pooling
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from tests.cli.conftest import Shoal


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small encoder, and a swarm that serves it to the command."""
    made = write_encoder(tmp_path / "bert")
    write_pooling(made, "mean_tokens", normalize=True)

    def in_swarm(settings, use):
        async def go():
            spans = [Span(0, 2), Span(2, 3), Span(3, 6)]
            async with memory_swarm(tmp_path / "swarm", made, spans) as swarm:
                return await use(swarm.client)

        return trio.run(go)

    monkeypatch.setattr(embed, "in_swarm", in_swarm)
    return str(made)


def test_each_text_is_a_line(
    folder: str, shoal: Shoal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = shoal("embed", folder, "hello world", "the sea")
    assert ran.code == 0, ran.err
    vectors = [json.loads(line) for line in ran.out.splitlines()]
    assert np.shape(vectors) == (2, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-6)
    assert "2 vectors of 64 numbers" in ran.err
    monkeypatch.setattr("sys.stdin", io.StringIO("hello world\n\nthe sea\n"))
    piped = shoal("embed", folder, "--json").data
    assert piped["embeddings"] == vectors
    assert (piped["dimensions"], len(piped["tokens"])) == (64, 2)
    file = tmp_path / "vectors.npy"
    assert shoal("embed", folder, "hello world", "the sea", "--output", str(file)).out == ""
    assert np.load(file).tolist() == vectors


def test_a_text_that_is_too_long_is_refused_or_cut(folder: str, shoal: Shoal) -> None:
    long = "the sea " * 300
    ran = shoal("embed", folder, long)
    assert (ran.code, "maximum context length is 130 tokens" in ran.err) == (1, True)
    ran = shoal("embed", folder, long, "--truncate", "--json")
    assert ran.code == 0, ran.err
    assert ran.data["tokens"] == [130]


def test_what_cannot_be_is_refused_before_anything_is_asked(
    shoal: Shoal, folder: str, tmp_path: Path
) -> None:
    ran = shoal("embed", folder)
    assert ran.code == 2
    assert "there is no text" in ran.err
    ran = shoal("embed", folder, "a", "--output", str(tmp_path / "vectors.csv"))
    assert ran.code == 2
    assert "must end in .npy" in ran.err
    assert shoal("embed", folder, "a", "--dimensions", "65").code == 2
