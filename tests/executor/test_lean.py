"""What runs on the kernels imports neither torch nor transformers: they take seconds, and hundreds of MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shoal.executor.kernels import c_kernels
from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint

HEAVY = ("torch", "transformers")
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import shoal.node.node
from shoal.executor.load import load_ends_runner, load_runner
from shoal.executor.runner import SessionRows
from shoal.models.store.store import ModelStore
from shoal.node.speed import measure_speed
from shoal.types import Span

folder, store, format = sys.argv[1:]
model = ModelStore(Path(store)).resolve(folder)
options = {"threads": 1, "cache": Path(store) / "cache"}
runner = load_runner(model, Span(0, 6), format, kv="auto", **options)
pool = runner.make_pool(256)
measure_speed(runner, pool)
ends = load_ends_runner(model, format, **options)
state = runner.open(runner.span, pool.promise(16))
(hidden,) = runner.forward([SessionRows(state, 0, ends.embed([1, 2, 3], 0))])
(logits,) = ends.heads([hidden])
assert logits.shape == (3, 300) and np.isfinite(logits).all()
print(*(name for name in ("torch", "transformers") if name in sys.modules))
"""


def imported(folder: Path, store: Path, format: str) -> list[str]:
    """Which of the heavy ones a process has imported after a forward from token ids to logits."""
    ModelStore(store).resolve(str(folder))  # what is described once is recorded
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(store), format],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split()


@pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")
@pytest.mark.parametrize("format", ["int8", "w8a8", "int4"])
def test_a_model_on_the_kernels_needs_neither(format: str, tmp_path: Path) -> None:
    assert imported(write_checkpoint(tmp_path / "llama"), tmp_path / "store", format) == []


def test_a_model_on_its_own_modules_needs_both(tmp_path: Path) -> None:
    assert imported(write_checkpoint(tmp_path / "gpt2", "gpt2"), tmp_path / "store", "fp32") == list(HEAVY)


def test_a_client_needs_neither() -> None:
    program = (
        "import sys, shoal.client.connect, shoal.client.swarm, shoal.client.sampling\n"
        "print(*(name for name in ('torch', 'transformers') if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
