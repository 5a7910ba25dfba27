"""One of two processes that build spans of many families together; rank 0 compares with one process.

Run as ``python split_family.py RANK STORE FOLDER FAMILY…``, with a folder of checkpoints and a store of them;
a JSON line for each family comes from rank 0.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from shoal.errors import ShoalError
from shoal.models.build.load import build_span_module, load_span_module
from shoal.models.build.span import SpanModule
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore
from shoal.types import Span

SPAN = Span(1, 5)


def outputs(module: SpanModule) -> torch.Tensor:
    """A prefill, a decoded token and more, past every sliding window; then the same in some of the blocks."""
    hidden = torch.randn(1, 14, module.width, generator=torch.Generator().manual_seed(3))
    outs: list[torch.Tensor] = []
    for part in (module, module.part(Span(2, 4))):
        cache = part.new_cache()
        outs += [part.forward(hidden[:, a:b], cache, a) for a, b in ((0, 10), (10, 11), (11, 14))]
    return torch.cat(outs, 1)


def compare(model: LocalModel, rank: int) -> dict[str, object]:
    """How far two processes are from one, of the largest element, and a process's share of the bytes."""
    try:
        half = build_span_module(model, SPAN, split=2)
        half.prove()
        found = outputs(half)
    except ShoalError as error:
        return {"refused": error.message}
    if rank:
        return {}
    whole = load_span_module(model, SPAN)
    expected = outputs(whole)
    difference = float((found - expected).abs().max() / expected.abs().max())
    return {"difference": difference, "share": half.tensor_bytes / whole.tensor_bytes}


def main() -> None:
    rank, store, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    torch.set_num_threads(1)
    deadline = timedelta(seconds=60)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2, timeout=deadline)
    models = ModelStore(folder / "store")
    for family in sys.argv[4:]:
        said = compare(models.resolve(str(folder / family)), rank)
        if not rank:
            print(json.dumps({"family": family} | said), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
