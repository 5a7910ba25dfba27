"""Spans and ends of an encoder: a whole text at once, each token seeing all others, and nothing is kept.

A text runs by itself, never padded and never beside others, so its bits do not depend on a batch.
"""

from __future__ import annotations

import torch

from shoal.errors import StepFailed, UnsupportedModel
from shoal.models.build.ends import EndsModule
from shoal.models.build.kv import Cache
from shoal.models.build.span import SpanModule
from shoal.models.build.tensors import check_hidden
from shoal.models.checkpoint.mrope import Grids
from shoal.models.checkpoint.multimodal import Stretches
from shoal.models.seam.cache import DynamicCache


class EncoderSpan(SpanModule):
    """Blocks ``[start, end)`` of an encoder."""

    stateless = True

    @torch.inference_mode()
    def forward(
        self,
        hidden: torch.Tensor,
        cache: Cache,
        position: int,
        sequence_length: int = 0,
        mutual: Stretches = (),
        grids: Grids = (),
    ) -> torch.Tensor:
        """What the next block, or the end, receives for a whole text.

        Args:
            hidden: ``[1, n, width]`` of all its tokens, what the block before gave, or the embedding.
            cache: only counts the tokens.
            position: 0.

        Raises:
            StepFailed: these are not the first tokens of a text, or more than the model was made for, or
                ``hidden`` has another shape or dtype.
            RuntimeError: torch's own faults, out of memory among them.
        """
        check_hidden(hidden, self.width, self.dtype)
        self.check_told(mutual, grids)
        if position:
            raise StepFailed(f"an encoder takes a whole text in one step, and none from position {position}")
        if hidden.shape[1] > self._longest:  # what the tokens see of each other takes their number squared
            raise StepFailed(f"a text of {hidden.shape[1]} tokens: the model takes {self._longest}")
        out = self._run(hidden.to(self.device), cache, 0, hidden.shape[1])
        cache.length = hidden.shape[1]
        return out

    def new_cache(self) -> Cache:
        """Nothing, for one session."""
        return Cache(DynamicCache())

    def crop(self, cache: Cache, length: int) -> None:
        """Forget the count of tokens from ``length`` on."""
        cache.length = min(cache.length, length)

    @property
    def rolls_back(self) -> bool:
        """There is nothing that could not be forgotten."""
        return True

    @property
    def _longest(self) -> int:
        return int(self._config.max_position_embeddings)

    def _inputs(self, hidden: torch.Tensor, cache: Cache, positions: torch.Tensor) -> dict[str, object]:
        return {"inputs_embeds": hidden}


class EncoderEnds(EndsModule):
    """The embedding of an encoder, and what is behind its last block: a norm, or nothing."""

    stateless = True

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Raises ``UnsupportedModel``: what an encoder was trained to predict is of no use here."""
        raise UnsupportedModel(f"{type(self.model).__name__} is an encoder: it gives vectors and no text")

    def _inputs(self, token_ids: torch.Tensor, positions: torch.Tensor) -> dict[str, object]:
        return {"input_ids": token_ids}  # it numbers positions itself, some from another number than 0
