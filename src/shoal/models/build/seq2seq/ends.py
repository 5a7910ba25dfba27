"""What the client keeps of a model with an encoder and a decoder: before and behind the blocks of each."""

from __future__ import annotations

from typing import Any, cast

import torch

from shoal.errors import UnsupportedModel, UsageError
from shoal.models.build.blocks import Blocks
from shoal.models.build.encoder import EncoderEnds
from shoal.models.build.ends import EndsModule
from shoal.models.build.placeholders import Reached
from shoal.models.build.self_check import refusal
from shoal.models.build.tensors import check_hidden, tensor_bytes
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.model import PreTrainedModel
from shoal.models.seam.seq2seq import STACKS


class TextSource(EncoderEnds):
    """The embedding of an encoder that reads, and the norm behind its last block."""

    def hear(self, features: torch.Tensor) -> torch.Tensor:
        """Raises ``UnsupportedModel``: it reads."""
        raise UnsupportedModel(f"{type(self.model).__name__} reads text and hears nothing")


class AudioSource(EncoderEnds):
    """The convolutions of an encoder that listens, and the norm behind its last block."""

    @torch.inference_mode()
    def hear(self, features: torch.Tensor) -> torch.Tensor:
        """What the first block receives, ``[1, n, width]``, for log-mel features ``[1, bins, frames]``.

        Raises:
            UsageError: they have another shape.
        """
        try:
            cast(Any, self.model)(input_features=features.to(self.device, self.dtype))
        except Reached as reached:
            return reached.hidden
        except (RuntimeError, ValueError) as error:
            raise UsageError(f"features of shape {tuple(features.shape)}: {error}") from error
        raise UnsupportedModel(f"{type(self.model).__name__} has no blocks")

    def embed(self, token_ids: object, position: int) -> torch.Tensor:
        """Raises ``UnsupportedModel``: it listens."""
        raise UnsupportedModel(f"{type(self.model).__name__} listens and reads no text")

    @torch.inference_mode()
    def last_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        """As :meth:`EndsModule.last_hidden`, without the convolutions with which the forward begins."""
        check_hidden(hidden, self.width, self.dtype)
        norm: Any = getattr(self.model, STACKS[self.model.config.model_type].norm)
        return norm(hidden.to(self.device))


class TargetEnds(EndsModule):
    """The embedding and the head of the decoder.

    Args:
        whole: the model that both stacks are of, which computes logits as it always does.
    """

    def __init__(
        self,
        whole: PreTrainedModel,
        model: PreTrainedModel,
        blocks: Blocks,
        config: PretrainedConfig,
        **options: Any,
    ) -> None:
        super().__init__(model, blocks, config, **options)
        self._whole = whole
        self.tensor_bytes = tensor_bytes(whole)
        self.source: TextSource | AudioSource | None = None
        """The ends of the encoder."""

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """As :meth:`EndsModule.head`."""
        check_hidden(hidden, self.width, self.dtype)
        for door in self.doors:
            door.substitute = hidden.to(self.device)
        # What enters at the bottom does not matter: the doors give what the last block gave.
        bottom = torch.zeros((1, hidden.shape[1]), dtype=torch.long, device=self.device)
        given = torch.zeros((1, 1, self.width), dtype=self.dtype, device=self.device)
        try:
            made: Any = cast(Any, self._whole)(
                encoder_outputs=(given,), decoder_input_ids=bottom, use_cache=False
            )
            return made.logits
        finally:
            for door in self.doors:
                door.substitute = None


def check_hear(source: AudioSource, bins: int, rows: int) -> None:
    """Have silence heard.

    Raises:
        UnsupportedModel: the blocks would receive another shape than they are known to.
    """
    frames = torch.zeros((1, bins, 2 * rows), dtype=source.dtype)
    found = tuple(source.hear(frames).shape)
    if found != (1, rows, source.width):
        raise refusal(type(source.model).__name__, f"its blocks receive {list(found)} for {2 * rows} frames")
