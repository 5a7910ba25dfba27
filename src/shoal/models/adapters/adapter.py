"""An adapter in memory: what it adds to which linear layers of which blocks (Hu et al., "LoRA", 2021).

A linear layer with an adapter gives ``W · x + scale · up · (down · x)``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shoal.errors import DigestMismatch
from shoal.types import AdapterDigest, Digest, ModelShape, Span

MAX_RANK = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""How an adapter may be asked for: it stands behind a colon in a model's name."""
LIKE_DIGEST = re.compile(r"[0-9A-Fa-f]{8,}")
"""How none may be called: it would be taken for the beginning of a digest."""
CONTEXT = b"shoal adapter 1\n"

Factor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class LowRank:
    """What an adapter has for one linear layer of ``cols`` inputs and ``rows`` outputs."""

    down: Factor
    """``[rank, cols]``: PEFT's A."""
    up: Factor
    """``[rows, rank]``: PEFT's B."""

    @property
    def rank(self) -> int:
        return len(self.down)

    @property
    def sizes(self) -> tuple[int, int]:
        """Outputs and inputs of the layer."""
        return len(self.up), self.down.shape[1]

    @property
    def bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, slots=True)
class Adapter:
    """A whole adapter, whichever blocks of its model are here."""

    name: str
    digest: AdapterDigest
    scale: float
    list_name: str
    """What the model calls its list of blocks, for example ``model.layers``."""
    blocks: Mapping[int, Mapping[str, LowRank]]
    """By block, and by the name of a linear layer in it, for example ``self_attn.q_proj``."""
    base: Digest | None = None
    """The model that it was made for, where its folder says so."""
    folder: Path | None = None
    """Where it was read from."""

    @property
    def rank(self) -> int:
        """The largest."""
        return max((low.rank for block in self.blocks.values() for low in block.values()), default=0)

    def span_bytes(self, span: Span) -> int:
        """Bytes of what it has for these blocks."""
        return sum(low.bytes for index in span_blocks(self, span) for low in self.blocks[index].values())

    def check_model(self, shape: ModelShape) -> None:
        """Refuse an adapter that was made for another model.

        Raises:
            DigestMismatch: its folder names another, or it changes blocks that the model does not have.
        """
        if self.base is not None and self.base != shape.digest:
            raise DigestMismatch(
                f"the adapter {self.name} was made for {self.base[:23]}…, and {shape.name} here is "
                f"{shape.digest[:23]}…: another model, or another version of it",
                check="serve the model that it was made for",
                next_command=f"shoal models show {shape.name}",
            )
        last = max(self.blocks, default=0)
        if last >= shape.n_blocks:
            raise other_model(self.name, shape.name, f"{self.list_name}.{last}", "is not there")


def span_blocks(adapter: Adapter, span: Span) -> list[int]:
    """The blocks of ``span`` that an adapter changes."""
    return [index for index in range(span.start, span.end) if index in adapter.blocks]


def other_model(adapter: str, model: str, layer: str, why: str) -> DigestMismatch:
    """The error of an adapter that does not fit the model's layers."""
    return DigestMismatch(
        f"the adapter {adapter} changes {layer}, which {why} in {model}: it was made for another model",
        check="serve the model that its adapter_config.json names: base_model_name_or_path",
    )


def adapter_digest(
    scale: float, list_name: str, blocks: Mapping[int, Mapping[str, LowRank]]
) -> AdapterDigest:
    """The hash of everything of an adapter that decides what it adds."""
    found = hashlib.sha256(CONTEXT + f"{float(scale).hex()} {list_name}\n".encode())
    for index in sorted(blocks):
        for name, low in sorted(blocks[index].items()):
            rows, cols = low.sizes
            found.update(f"{index} {name} {low.rank} {rows} {cols}\n".encode())
            found.update(np.ascontiguousarray(low.down, "<f4").tobytes())
            found.update(np.ascontiguousarray(low.up, "<f4").tobytes())
    return AdapterDigest(f"sha256:{found.hexdigest()}")
