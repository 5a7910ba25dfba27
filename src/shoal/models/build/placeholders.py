"""What stands in a hollow model where something was taken out."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn


class Passthrough(nn.Module):
    """In place of a module whose weights are not needed: floats pass, anything else gives ``fill``."""

    fill = 0.0
    """Changed by the self-check only, to show that nothing depends on it."""

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim == 3:
                return value
        return torch.tensor(self.fill)


class Reached(Exception):
    """A signal, no error: the forward is where it was to stop; the weights of what follows are not here."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class Door(nn.Module):
    """In place of a block, in a model without any: the wire begins and ends here.

    Open, it lets ``substitute`` through instead of what came; closed, it stops the forward with
    :class:`Reached`. ``beside`` is how the model's own blocks answer: with how many values beside hidden
    states; 0: with these alone, in no tuple.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.substitute: torch.Tensor | None = None
        self.beside = 0
        self.arguments: tuple[object, ...] = ()
        """What came beside the hidden states, the last time; for the self-check."""
        for name, value in vars(block).items():
            if not name.startswith("_") and name != "training":  # the loop may ask a block what it is
                setattr(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor | tuple[torch.Tensor | None, ...]:
        hidden, self.arguments = split_hidden(args, kwargs)
        if self.substitute is None:
            raise Reached(hidden)
        return (self.substitute, *[None] * self.beside) if self.beside else self.substitute


def split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, tuple[object, ...]]:
    """A block's hidden states, and its other arguments."""
    if args:
        return cast(torch.Tensor, args[0]), (*args[1:], kwargs)
    rest = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return cast(torch.Tensor, kwargs["hidden_states"]), (rest,)
