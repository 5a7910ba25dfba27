"""Keys and values in room that grows ahead of them, as they are or as 8-bit integers.

Transformers puts a new tensor together at every token, which copies a whole session's cache each time.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from shoal.models.seam.cache import DynamicLayer

SPARE = 8
"""Room grows by an eighth of what is there: a token is copied about eight times in all, not once a step."""
AT_LEAST = 16
"""Tokens by which room grows."""


class KvRows(Protocol):
    """Vectors ``[batch, heads, n, dims]``, one row for each token."""

    row_bytes: int
    """Bytes of one token."""

    def __init__(self, like: torch.Tensor) -> None: ...

    def put(self, x: torch.Tensor, at: int) -> None:
        """Keep ``x`` as rows from ``at`` on."""
        ...

    def get(self, end: int) -> torch.Tensor:
        """The first ``end`` rows, in the dtype in which they came."""
        ...


class FloatRows:
    """Rows as they came."""

    def __init__(self, like: torch.Tensor) -> None:
        self._held = like.new_empty((*like.shape[:2], 0, like.shape[3]))
        self.row_bytes = like[:, :, :1].numel() * like.element_size()

    def put(self, x: torch.Tensor, at: int) -> None:
        end = at + x.shape[2]
        self._held = _with_room(self._held, at, end)
        self._held[:, :, at:end] = x

    def get(self, end: int) -> torch.Tensor:
        return self._held[:, :, :end]


class Int8Rows:
    """Rows as 8-bit integers, each with a float32 scale."""

    def __init__(self, like: torch.Tensor) -> None:
        self._dtype = like.dtype
        self._held = like.new_empty((*like.shape[:2], 0, like.shape[3]), dtype=torch.int8)
        self._scales = like.new_empty((*like.shape[:2], 0, 1), dtype=torch.float32)
        self.row_bytes = like.shape[0] * like.shape[1] * (like.shape[3] + 4)

    def put(self, x: torch.Tensor, at: int) -> None:
        end = at + x.shape[2]
        self._held, self._scales = _with_room(self._held, at, end), _with_room(self._scales, at, end)
        largest = x.float().abs().amax(-1, keepdim=True)
        to_integer = torch.where(largest > 0, torch.full_like(largest, 127) / largest, 0.0)
        self._held[:, :, at:end] = (x * to_integer).round().to(torch.int8)
        self._scales[:, :, at:end] = largest / 127

    def get(self, end: int) -> torch.Tensor:
        return (self._held[:, :, :end] * self._scales[:, :, :end]).to(self._dtype)


class RowsLayer(DynamicLayer):
    """A block's keys and values in one kind of :class:`KvRows`.

    What attention is given is what was kept, for new tokens too: a token's output does not depend on which
    others came in the same step.
    """

    def __init__(self, kind: type[KvRows]) -> None:
        super().__init__()
        self.length = 0
        self._kind = kind
        self._rows: tuple[KvRows, KvRows] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the new tokens' ``[batch, heads, n, dims]``; returns those of all tokens."""
        if self._rows is None:
            self._rows = self._kind(key_states), self._kind(value_states)
            self.is_initialized = True
        keys, values = self._rows
        keys.put(key_states, self.length)
        values.put(value_states, self.length)
        self.length += key_states.shape[2]
        return keys.get(self.length), values.get(self.length)

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last ``-tokens_to_remove`` tokens."""
        self.length += tokens_to_remove

    @property
    def held_bytes(self) -> int:
        """Bytes of the tokens that are kept; there is room for an eighth more."""
        return 0 if self._rows is None else self.length * sum(rows.row_bytes for rows in self._rows)


def _with_room(held: torch.Tensor, at: int, end: int) -> torch.Tensor:
    """``held``, or its first ``at`` rows in a larger tensor, so that there is room up to ``end``."""
    if end <= held.shape[2]:
        return held
    wider = held.new_empty((*held.shape[:2], end + max(AT_LEAST, end // SPARE), held.shape[3]))
    wider[:, :, :at] = held[:, :, :at]
    return wider
