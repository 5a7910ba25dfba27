"""Which linear layers a model's blocks have: what an adapter of it may change. Nothing is loaded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from shoal.errors import UnsupportedModel, UsageError
from shoal.models.build.blocks import find_blocks
from shoal.models.build.skeleton import causal_class, read_model_config
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.seam.layers import is_linear, is_turned
from shoal.models.store.local_model import LocalModel

LinearSizes = dict[str, tuple[int, int]]
"""By a layer's name in its block, outputs and inputs."""


def linear_layers(local: LocalModel, wanted: Sequence[str] = ()) -> tuple[str, LinearSizes]:
    """What the model calls its list of blocks, and the linear layers that all blocks have in one size.

    Args:
        wanted: the last names of those that are wanted; empty: all.

    Raises:
        UsageError: some that are wanted are not there.
        UnsupportedModel: the model is no decoder, or its blocks have no such layer.
        BadWeights: its config cannot be read.
    """
    config = read_model_config(open_checkpoint(local.path))
    with torch.device("meta"):
        model = causal_class(config)(config)
    blocks = find_blocks(model, int(config.num_hidden_layers)).modules
    list_name = next(name for name, module in model.named_modules() if module is blocks)
    kinds = [_sizes(block) for block in blocks]
    common = {name: size for name, size in kinds[0].items() if all(k.get(name) == size for k in kinds)}
    found = {name: size for name, size in common.items() if not wanted or name.rpartition(".")[2] in wanted}
    missing = set(wanted) - {name.rpartition(".")[2] for name in found}
    if missing:
        known = sorted({name.rpartition(".")[2] for name in common})
        raise UsageError(
            f"not all blocks of {local.name} have a linear layer called {', '.join(sorted(missing))}",
            check=f"choose of {', '.join(known)}",
        )
    if not found:
        raise UnsupportedModel(f"the blocks of {local.name} have no linear layer in common")
    return list_name, found


def _sizes(block: nn.Module) -> LinearSizes:
    sizes: LinearSizes = {}
    for name, module in block.named_modules():
        if is_linear(module):
            first, second = (int(n) for n in module.weight.shape)  # pyright: ignore[reportGeneralTypeIssues]
            sizes[name] = (second, first) if is_turned(module) else (first, second)
    return sizes
