"""A node's memory is its span: less than the bare process and 1.25 times its tensors, at the peak too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from shoal.models.store.store import ModelStore
from shoal.testing.checkpoints import write_checkpoint

SCRIPT = """
import json, pathlib, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, LlamaForCausalLM
def status(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))
torch.zeros(4, 576) @ torch.zeros(576, 576)  # what torch loads for its first product is not ours
bare = status("VmRSS")
from shoal.models.build.load import load_span_module
from shoal.models.store.store import ModelStore
from shoal.types import Span
model = ModelStore(pathlib.Path(sys.argv[1])).resolve(sys.argv[2])
span = load_span_module(model, Span(2, 12), sys.argv[3])
cache = span.new_cache()
for position in range(10):
    span.forward(torch.zeros(1, 1, span.width, dtype=span.dtype), cache, position)
now, peak = status("VmRSS"), status("VmHWM")
print(json.dumps({"bare": bare, "rss": now, "peak": peak, "tensors": span.tensor_bytes}))
"""


@pytest.mark.models
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_blocks_of_a_larger_model(tmp_path: Path) -> None:
    folder = write_checkpoint(
        tmp_path / "larger",
        shard="100MB",
        num_hidden_layers=14,
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        vocab_size=512,
    )
    store = ModelStore(tmp_path / "store")
    store.pull(str(folder))
    command = [sys.executable, "-c", SCRIPT, str(store.root), "larger", "float32"]
    found = json.loads(subprocess.check_output(command, text=True, stderr=subprocess.DEVNULL))
    assert found["tensors"] > 130e6
    for moment in ("rss", "peak"):
        assert found[moment] < found["bare"] + 1.25 * found["tensors"], found
