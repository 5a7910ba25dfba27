"""Masks by which tokens of a stretch see each other, as Gemma 3's rows of a picture do.

Relied on: ``create_masks_for_vision_model`` gives the masks of both kinds of blocks, by numbers of the
stretches from the beginning of the sequence on, with -1 where there is none; the model takes them as its
``attention_mask``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch

from shoal.models.seam.cache import DynamicCache
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import expect_arguments, relied_on

with relied_on("masks of pictures"):
    from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

    expect_arguments(
        create_masks_for_vision_model,
        "config",
        "inputs_embeds",
        "cache",
        "position_ids",
        "block_sequence_ids",
    )


def mutual_masks(
    config: PretrainedConfig,
    hidden: torch.Tensor,
    states: DynamicCache,
    positions: torch.Tensor,
    mutual: Sequence[tuple[int, int]],
) -> dict[str, Any]:
    """What a forward takes as its mask, by the kind of block.

    Args:
        hidden: ``[1, n, width]``
        positions: of its tokens, ``[n]``.
        mutual: stretches of positions among them whose tokens see each other.
    """
    numbers = torch.full((1, int(positions[-1]) + 1), -1, device=hidden.device)
    for number, (first, last) in enumerate(mutual):
        numbers[0, first:last] = number
    made = create_masks_for_vision_model(
        config=cast(Any, config),
        inputs_embeds=hidden,
        attention_mask=None,
        cache=cast(Any, states),
        position_ids=positions[None],
        block_sequence_ids=numbers,
    )
    return cast("dict[str, Any]", made)
