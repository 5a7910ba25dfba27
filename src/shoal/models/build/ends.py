"""The ends that the client keeps: tokens become hidden states, hidden states become logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from shoal.errors import PromptTooLong, StepFailed, UnsupportedModel, UsageError
from shoal.models.build.blocks import Blocks
from shoal.models.build.placeholders import Door, Reached
from shoal.models.build.rope_scaling import rope_scaling
from shoal.models.build.tensors import check_hidden, tensor_bytes
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.model import PreTrainedModel, accepted_inputs


class EndsModule:
    """The embedding and the head, sharing a tied matrix. For one thread at a time."""

    stateless = False
    """As the blocks': see :class:`~shoal.models.build.span.SpanModule`."""

    def __init__(
        self,
        model: PreTrainedModel,
        blocks: Blocks,
        config: PretrainedConfig,
        *,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.width = int(config.hidden_size)
        self.vocab_size = int(config.vocab_size)
        self.context = context
        self.dtype = dtype
        self.device = device
        self.model = model
        self.rope_scaling = rope_scaling(config)
        self.tensor_bytes = tensor_bytes(model)
        """Bytes of both ends' weights in memory, a tied matrix once."""
        self.doors = [cast(Door, door) for door in blocks.modules]
        self._accepts = accepted_inputs(model.base_model)
        self.knows_position = bool(self._accepts & {"position_ids", "cache_position"})

    @torch.inference_mode()
    def embed(self, token_ids: Sequence[int], position: int) -> torch.Tensor:
        """What the first block receives, ``[1, n, width]``, for tokens ``[position, position + n)``.

        Raises:
            UsageError: no tokens, or one outside of the vocabulary.
            PromptTooLong: positions beyond the model's context.
        """
        if not token_ids or min(token_ids) < 0 or max(token_ids) >= self.vocab_size:
            raise UsageError(
                f"token ids must be in 0..{self.vocab_size - 1}, and at least one",
                check="check that the token ids come from this model's tokenizer",
            )
        if position < 0 or position + len(token_ids) > self.context:
            raise PromptTooLong(
                f"position {position + len(token_ids)} is beyond the model's context of {self.context} tokens"
            )
        positions = torch.arange(position, position + len(token_ids), device=self.device)
        return self._before_blocks(self._inputs(torch.tensor([token_ids], device=self.device), positions))

    def place(self, rows: torch.Tensor) -> torch.Tensor:
        """What the first block receives, ``[1, n, width]``, for rows that stand in the place of embeddings
        ``[n, width]`` at the first n positions. Gradients go through.

        Raises:
            UnsupportedModel: the model takes tokens alone.
        """
        if "inputs_embeds" not in self._accepts:
            raise UnsupportedModel("the model takes tokens alone: there are no soft prompts for it")
        offered = self._inputs(
            rows[None].to(self.device, self.dtype), torch.arange(len(rows), device=self.device)
        )
        offered["inputs_embeds"] = offered.pop("input_ids")
        return self._before_blocks(offered)

    def word_rows(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The embeddings of tokens, ``[n, width]``, as :meth:`place` takes rows."""
        with torch.no_grad():
            embedding = self.model.get_input_embeddings()
            return cast(torch.Tensor, embedding(torch.tensor(token_ids, device=self.device)))

    def _before_blocks(self, offered: dict[str, object]) -> torch.Tensor:
        for door in self.doors:
            door.substitute = None
        try:
            self.model.base_model(**{name: offered[name] for name in self._accepts & offered.keys()})
        except Reached as reached:
            return reached.hidden
        raise StepFailed("the forward did not come to the first block")

    def _inputs(self, token_ids: torch.Tensor, positions: torch.Tensor) -> dict[str, object]:
        """What the model's forward is given, as far as it takes it."""
        return {
            "input_ids": token_ids,
            "position_ids": positions[None],
            "cache_position": positions,
            "use_cache": False,
        }

    @torch.inference_mode()
    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits ``[1, n, vocab]`` of what the last block gave, ``[1, n, width]``.

        The last bits may depend on ``n``, as they do in transformers: for those of ``generate`` pass the last
        row alone.

        Raises:
            StepFailed: ``hidden`` has another shape or dtype.
        """
        return self.logits(hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The same where gradients are wanted: they go through."""
        return cast(torch.Tensor, self._behind_blocks(self.model, hidden).logits)

    @torch.inference_mode()
    def last_hidden(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's last hidden states ``[1, n, width]``, after its last norm, of what the last block gave.

        Raises:
            StepFailed: ``hidden`` has another shape or dtype.
        """
        return cast(torch.Tensor, self._behind_blocks(self.model.base_model, hidden).last_hidden_state)

    def _behind_blocks(self, model: nn.Module, hidden: torch.Tensor) -> Any:
        check_hidden(hidden, self.width, self.dtype)
        for door in self.doors:
            door.substitute = hidden.to(self.device)
        # What enters at the bottom does not matter: the doors give what the last block gave.
        bottom = torch.zeros((1, hidden.shape[1]), dtype=torch.long, device=self.device)
        options = {} if self.stateless else {"use_cache": False}
        try:
            return model(input_ids=bottom, **options)
        finally:
            for door in self.doors:
                door.substitute = None
