"""Rotary positions of a piece of a longer sequence, where frequencies depend on the sequence's length.

Transformers goes by the last position of a forward, and ``dynamic`` by those of earlier forwards too, also
of other sequences. A hop sees a prompt in pieces, and many sessions: it must be told.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

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
