"""To go backward through blocks: what is kept of them, and that it makes no difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.executor.modules import load_modules
from shoal.executor.training import train
from shoal.executor.training.train import TrainingLayer, TrainingWork
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

WIDTH, BLOCKS, LENGTHS = 64, 6, (9, 5)


@pytest.mark.models
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_beyond_what_fits_are_computed_again_and_gradients_have_the_same_bits(
    tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = write_checkpoint(tmp_path / family, family)
    runner = load_modules(
        ModelStore(tmp_path / "store").show(str(checkpoint)), Span(0, BLOCKS), "fp32", kv="auto", threads=1
    )
    again, run_again = list[object](), train.checkpoint

    def counted(*given: object, **named: object) -> object:
        again.append(given[0])
        return run_again(*given, **named)  # pyright: ignore[reportArgumentType, reportCallIssue]

    monkeypatch.setattr(train, "checkpoint", counted)

    def gradients(kept_bytes: int) -> list[np.ndarray]:
        monkeypatch.setattr(train, "KEPT_BYTES", kept_bytes)
        made = torch.Generator().manual_seed(1)
        rows = sum(LENGTHS)
        name = {"llama": "self_attn.q_proj", "gpt2": "attn.c_proj"}[family]
        layers = [
            TrainingLayer(
                block, name, torch.randn(4, WIDTH, generator=made), torch.randn(WIDTH, 4, generator=made)
            )
            for block in range(BLOCKS)
        ]
        work = TrainingWork(
            lengths=LENGTHS,
            hidden=torch.randn(rows, WIDTH, generator=made),
            gradients=torch.randn(rows, WIDTH, generator=made),
            list_name="model.layers" if family == "llama" else "transformer.h",
            scale=2.0,
            layers=layers,
            within_s=60.0,
        )
        asked = runner.train(Span(0, BLOCKS), work)
        while not asked.advance():
            pass
        return asked.result()

    kept = gradients(1 << 28)
    assert again == []
    computed = gradients(0)
    assert len(again) == (BLOCKS - 1) * len(LENGTHS)
    assert all(np.array_equal(one, other) for one, other in zip(kept, computed, strict=True))
    counts = list[int]()
    for kept_bytes in (40_000, 80_000, 160_000, 320_000):
        again.clear()
        gradients(kept_bytes)
        counts.append(len(again))
    assert counts == sorted(counts, reverse=True)
    assert any(0 < count < (BLOCKS - 1) * len(LENGTHS) for count in counts)
