"""Rotary positions that a hop must be told: of a piece of a longer sequence, and of rows of pictures.

Where frequencies depend on the sequence's length, transformers goes by the last position of a forward, and
``dynamic`` by those of earlier forwards too, also of other sequences. A hop sees a prompt in pieces, and many
sessions: it must be told. So it must of pictures, whose rows have three positions in some models.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from shoal.models.checkpoint.mrope import MROPE_SECTIONS, Grids, Sections, read_sections, rotary_positions
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.model import PreTrainedModel
from shoal.models.seam.rotary import follows_length


class SequenceRope(nn.Module):
    """A model's own rotary embedding, for a sequence that may go on behind what is run."""

    def __init__(self, rope: nn.Module) -> None:
        super().__init__()
        self.rope = rope
        self.ahead = 0
        """The sequence's length where it goes beyond the positions of the next forward, or 0."""

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the model's own, whose results are ``[…, n, dims]``, for position ids ``[…, n]``."""
        first = position_ids[..., :1]
        self.rope(x, torch.zeros_like(first), *args, **kwargs)  # forgets the lengths of earlier forwards
        if not self.ahead:
            return self.rope(x, position_ids, *args, **kwargs)
        last = torch.full_like(first, self.ahead - 1)
        found = self.rope(x, torch.cat((position_ids, last), -1), *args, **kwargs)
        if isinstance(found, torch.Tensor):
            return found[..., :-1, :]
        return tuple(part[..., :-1, :] for part in cast("tuple[torch.Tensor, ...]", found))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("rope"), name)  # what a model's code asks of its own


def sequence_ropes(model: nn.Module) -> list[SequenceRope]:
    """A model's rotary embeddings whose frequencies depend on the sequence's length, which can be told it."""
    for owner in [module for module in model.modules() if not isinstance(module, SequenceRope)]:
        for name, child in list(owner.named_children()):
            if not isinstance(child, SequenceRope) and follows_length(child):
                setattr(owner, name, SequenceRope(child))
    return [module for module in model.modules() if isinstance(module, SequenceRope)]


class GridRope(nn.Module):
    """A model's own rotary embedding, for tokens among pictures, of which rows have three positions."""

    def __init__(self, rope: nn.Module, sections: Sections) -> None:
        super().__init__()
        self.rope = rope
        self._sections = sections
        self._positions: torch.Tensor | None = None

    def place(self, position: int, tokens: int, grids: Grids) -> None:
        """The next forward is of tokens from ``position`` on, behind or among these pictures."""
        self._positions = torch.from_numpy(rotary_positions(position, tokens, grids)) if grids else None

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        """As the model's own: cosines and sines ``[1, n, dims]``, both halves of ``dims`` alike."""
        if self._positions is None:
            return self.rope(x, position_ids)
        by_axis = [self.rope(x, ids[None]) for ids in self._positions.T.to(position_ids)]
        return tuple(self._joined([found[part] for found in by_axis]) for part in (0, 1))

    def _joined(self, by_axis: list[torch.Tensor]) -> torch.Tensor:
        """Of what turns by each of the three positions, each its section."""
        parts = [found.split(self._sections * 2, dim=-1) for found in by_axis]
        return torch.cat([parts[number % 3][number] for number in range(6)], dim=-1)


def mrope_sections(config: PretrainedConfig) -> Sections | None:
    """The sections of a model whose rows may have three positions; ``None`` of all others."""
    c = cast(Any, config)
    if c.model_type != "qwen2":
        return None
    dims = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return read_sections(getattr(c, MROPE_SECTIONS, None), dims)


def grid_rope(model: PreTrainedModel, sections: Sections) -> GridRope:
    """The rotary embedding of a model of Qwen's kind, which can be told of pictures."""
    base = cast(Any, model.base_model)
    if not isinstance(base.rotary_emb, GridRope):
        base.rotary_emb = GridRope(base.rotary_emb, sections)
    return base.rotary_emb
