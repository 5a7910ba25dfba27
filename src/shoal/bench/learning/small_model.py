"""The model that is trained from scratch, and the text that it learns: bytes of a book."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import torch
from torch import nn
from torch.nn import functional

TEXT = "alice.txt"
KINDS = 128
"""Bytes of ASCII."""
WIDTH, BLOCKS, HEADS = 128, 4, 4
ROWS = 64
"""Bytes of an example, each of which but the first is to be told."""
EXAMPLES = 4
"""Of one member in a step."""
KEPT_BACK = 0.1
"""Of the text, its end, from which nothing is learnt."""
SEEN_BACK = 32
"""Examples of that by which a loss is told."""


class SmallModel(nn.Module):
    """A transformer of 0.8 million parameters, which tells the next byte."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.bytes = nn.Embedding(KINDS, WIDTH)
        self.places = nn.Embedding(ROWS, WIDTH)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(BLOCKS)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, KINDS, bias=False)
        for embedding in (self.bytes, self.places, self.head):
            nn.init.normal_(embedding.weight, std=0.02)
        self._mask = nn.Transformer.generate_square_subsequent_mask(ROWS)

    def loss(self, examples: torch.Tensor) -> torch.Tensor:
        """The mean over all bytes of ``[examples, ROWS + 1]``."""
        before, wanted = examples[:, :-1], examples[:, 1:]
        hidden = self.bytes(before) + self.places(torch.arange(before.shape[1]))
        for block in self.blocks:
            hidden = block(hidden, src_mask=self._mask, is_causal=True)
        logits = self.head(self.norm(hidden))
        return functional.cross_entropy(logits.reshape(-1, KINDS), wanted.reshape(-1))


class Book:
    """The text, cut into what is learnt and what is kept back."""

    def __init__(self) -> None:
        raw = files("shoal.bench").joinpath("data", TEXT).read_bytes()
        values = torch.from_numpy(np.frombuffer(raw, np.uint8).astype(np.int64) % KINDS)
        cut = int(len(values) * (1 - KEPT_BACK))
        self._learnt, self._back = values[:cut], values[cut:]

    def examples(self, member: int, step: int) -> torch.Tensor:
        """Those of a member in a step, ``[EXAMPLES, ROWS + 1]``: other ones for each."""
        chance = np.random.default_rng([member, step])
        begins = chance.integers(0, len(self._learnt) - ROWS - 1, EXAMPLES)
        return torch.stack([self._learnt[begin : begin + ROWS + 1] for begin in begins.tolist()])

    def kept_back(self) -> torch.Tensor:
        """``[SEEN_BACK, ROWS + 1]``, spread evenly."""
        begins = np.linspace(0, len(self._back) - ROWS - 1, SEEN_BACK).astype(int).tolist()
        return torch.stack([self._back[begin : begin + ROWS + 1] for begin in begins])


def held_back_loss(model: SmallModel, book: Book) -> float:
    """The mean loss over what nothing is learnt from."""
    with torch.no_grad():
        return float(model.loss(book.kept_back()))
