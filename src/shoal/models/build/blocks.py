"""Where a model keeps its blocks, and what its loop over them believes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard, cast

from torch import nn

from shoal.errors import UnsupportedModel
from shoal.models.seam.config import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Blocks:
    """Where a model keeps its blocks: ``path`` leads from the model to the owner of the list ``name``."""

    path: tuple[nn.Module, ...]
    name: str
    n_blocks: int
    """Of the whole model, whatever is in the list now."""
    whole: tuple[tuple[PretrainedConfig | None, dict[str, Sequence[object]]], ...]
    """For each module of ``path``: its config, and its own lists with an item for each block."""

    @property
    def modules(self) -> nn.ModuleList:
        return cast(nn.ModuleList, getattr(self.path[-1], self.name))

    def replace(self, blocks: nn.ModuleList, first: int) -> None:
        """Put other blocks into the list, ``first`` being the index of the first of them in the whole model.

        The loop over the blocks, and only it, is told that there are these and no others: a block keeps the
        config, and so the nature, that it has in the whole model.
        """
        setattr(self.path[-1], self.name, blocks)
        end = first + len(blocks)
        for owner, (config, lists) in zip(self.path, self.whole, strict=True):
            for name, value in lists.items():
                setattr(owner, name, value[first:end])  # pyright: ignore[reportArgumentType]
            if config is not None:
                setattr(owner, "config", _narrowed(config, self.n_blocks, first, end))  # noqa: B010


def find_blocks(model: nn.Module, n_blocks: int) -> Blocks:
    """The shallowest list of ``n_blocks`` modules.

    Raises:
        UnsupportedModel: there is none, or more than one at the same depth.
    """
    level: list[tuple[nn.Module, ...]] = [(model,)]
    while level:
        found = [
            Blocks(path, name, n_blocks, tuple(_whole(owner, n_blocks) for owner in path))
            for path in level
            for name, child in path[-1].named_children()
            if isinstance(child, nn.ModuleList) and len(child) == n_blocks
        ]
        if len(found) == 1:
            return found[0]
        if found:
            raise UnsupportedModel(f"{type(model).__name__} has more than one list of {n_blocks} blocks")
        level = [(*path, child) for path in level for child in path[-1].children()]
    raise UnsupportedModel(f"{type(model).__name__} has no list of {n_blocks} blocks")


def _whole(owner: nn.Module, n_blocks: int) -> tuple[PretrainedConfig | None, dict[str, Sequence[object]]]:
    config = getattr(owner, "config", None)
    lists = {name: value for name, value in vars(owner).items() if _is_per_block(value, n_blocks)}
    return (config if isinstance(config, PretrainedConfig) else None), lists


def _narrowed(whole: PretrainedConfig, n_blocks: int, first: int, end: int) -> PretrainedConfig:
    config = copy.deepcopy(whole)
    cls = type(config)
    # Some families compute their lists (``layer_types`` from a period): those become constants.
    computed = {
        name: value[first:end]
        for name in set(dir(cls)) - set(dir(PretrainedConfig))
        if isinstance(getattr(cls, name), property)
        and _is_per_block(value := getattr(config, name, None), n_blocks)
    }
    config.num_hidden_layers = end - first
    for name, value in list(vars(config).items()):
        if _is_per_block(value, n_blocks):
            setattr(config, name, value[first:end])
    config.__class__ = type(cls.__name__, (cls,), computed)
    return config


def _is_per_block(value: object, n_blocks: int) -> TypeGuard[Sequence[object]]:
    return isinstance(value, (list, tuple)) and len(cast("list[object]", value)) == n_blocks
