"""What the processes of one split span say to each other: a line each, over the pipes between them.

What is computed with travels over torch.distributed; here goes only what is to be done next. A pipe has two
virtues over a collective: one may wait at it for ever, and it closes when the process at its other end dies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from shoal.models.store.local_model import LocalModel
from shoal.types import DType, Kv, Span

_Count = Annotated[int, Meta(ge=0)]


class _Line(Struct, frozen=True, tag=True):
    pass


class Begin(_Line, frozen=True):
    """Meet the others, and load your part of the span's weights."""

    ranks: _Count
    store: str
    """The file by which they find each other."""
    deadline_s: float
    """For one collective."""
    threads: _Count
    """Of each process's forward."""
    model: LocalModel
    span: Span
    dtype: DType
    kv: Kv
    device: str = "cpu"
    """Of rank 0; the others are on devices of the same kind."""


class CheckAlone(_Line, frozen=True):
    """Prove that the span stands alone."""


class Meet(_Line, frozen=True):
    """Show that all are at the same place."""


class PreparePart(_Line, frozen=True):
    """Have some of the blocks ready as a span of their own."""

    span: Span


class RunStep(_Line, frozen=True):
    """Run tokens ``[position, position + tokens)`` through ``span``; their hidden states are broadcast."""

    span: Span
    cache: _Count
    position: _Count
    tokens: _Count
    sequence_length: _Count = 0
    mutual: tuple[tuple[_Count, _Count], ...] = ()
    grids: tuple[tuple[_Count, _Count, _Count], ...] = ()


class Drop(_Line, frozen=True):
    """Forget a cache. The only order that is not answered."""

    cache: _Count


class OrderDone(_Line, frozen=True):
    """It is done, or at first: I am here."""

    weights: _Count = 0
    """Bytes of this process's part of them."""


class OrderFailed(_Line, frozen=True):
    """An error, by its code."""

    code: str
    message: str


RankOrder = Begin | CheckAlone | Meet | PreparePart | RunStep | Drop
RankAnswer = OrderDone | OrderFailed


def write(line: RankOrder | RankAnswer) -> bytes:
    """A line, with its end."""
    return msgspec.json.encode(line, enc_hook=str) + b"\n"


def read_order(line: bytes) -> RankOrder:
    """What :func:`write` wrote. Raises ``msgspec.DecodeError`` when it did not."""
    return _ORDER.decode(line)


def read_answer(line: bytes) -> RankAnswer:
    """What :func:`write` wrote. Raises ``msgspec.DecodeError`` when it did not."""
    return _ANSWER.decode(line)


def _to_path(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)


_ORDER: msgspec.json.Decoder[RankOrder] = msgspec.json.Decoder(RankOrder, dec_hook=_to_path)
_ANSWER: msgspec.json.Decoder[RankAnswer] = msgspec.json.Decoder(RankAnswer)
