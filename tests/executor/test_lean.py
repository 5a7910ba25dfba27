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

folder, store, *formats = sys.argv[1:]
model = ModelStore(Path(store)).resolve(folder)
options = {"threads": 1, "cache": Path(store) / "cache"}
for format in formats:
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


STOP = """
import sys
class Stop:
    def find_spec(self, name, path, target=None):
        if name in ("torch", "transformers"):
            print(name, flush=True)
            raise SystemExit
sys.meta_path.insert(0, Stop())
"""


def imported(folder: Path, store: Path, *formats: str, before: str = "") -> list[str]:
    """Which of the heavy ones a process has imported after forwards from token ids to logits."""
    ModelStore(store).resolve(str(folder))  # what is described once is recorded
    run = subprocess.run(
        [sys.executable, "-c", before + PROGRAM, str(folder), str(store), *formats],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.split()


@pytest.mark.skipif(c_kernels.library() is None, reason="the C kernels are not built")
def test_a_model_on_the_kernels_needs_neither(tmp_path: Path) -> None:
    formats = ("int8", "w8a8", "int4")
    assert imported(write_checkpoint(tmp_path / "llama"), tmp_path / "store", *formats) == []


def test_a_model_on_its_own_modules_needs_them(tmp_path: Path) -> None:
    """It asks for one, and is told no more: to import them takes longer than all else here."""
    found = imported(write_checkpoint(tmp_path / "gpt2", "gpt2"), tmp_path / "store", "fp32", before=STOP)
    assert found and set(found) < set(HEAVY)


def test_a_client_needs_neither() -> None:
    program = (
        "import sys, shoal.client.connect, shoal.client.swarm, shoal.client.sampling\n"
        "print(*(name for name in ('torch', 'transformers') if name in sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == []
