"""Models that look at pictures: their towers, and how pictures become numbers.

Relied on: the mapping below gives the class of LLaVA's, Gemma 3's and Qwen-VL's models, which have the
language part at ``model.language_model`` and ``lm_head``, and all else beside it. ``get_image_features``
takes ``pixel_values``, with Qwen-VL ``image_grid_thw``, too, and gives, as ``pooler_output``, what takes the
place of a picture's tokens among the embeddings. Image processors of the names in ``PROCESSORS`` have a twin
that needs Pillow and numpy alone; it is made by ``from_dict`` and called with one picture. Qwen-VL's gives
patches ``[n, values]`` and, as ``image_grid_thw``, how many lie over and beside each other.
``create_masks_for_vision_model`` gives the masks of both kinds of Gemma 3's blocks, by numbers of the
stretches whose tokens see each other, from the beginning of the sequence on, with -1 where there is none; the
model takes them as its ``attention_mask``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import nn

from shoal.models.seam.cache import DynamicCache
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import changed, expect_arguments, expect_members, relied_on
from shoal.models.seam.model import PreTrainedModel

with relied_on("models that look at pictures"):
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    from transformers.models.gemma3.modeling_gemma3 import Gemma3Model, create_masks_for_vision_model
    from transformers.models.llava.modeling_llava import LlavaModel
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
    from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

    expect_members(LlavaModel, "get_image_features")
    expect_members(Gemma3Model, "get_image_features")
    for model in (Qwen2VLModel, Qwen2_5_VLModel):
        expect_arguments(model.get_image_features, "pixel_values", "image_grid_thw")
    expect_arguments(
        create_masks_for_vision_model,
        "config",
        "inputs_embeds",
        "cache",
        "position_ids",
        "block_sequence_ids",
    )

PROCESSORS = {
    "CLIPImageProcessor": "clip",
    "Gemma3ImageProcessor": "gemma3",
    "LlavaImageProcessor": "llava",
    "Qwen2VLImageProcessor": "qwen2_vl",
    "SiglipImageProcessor": "siglip",
}
"""Where the twin of an image processor is found, whose name ends in ``Pil``."""


class PictureProcessor(Protocol):
    """Makes numbers of a picture."""

    def __call__(self, images: object, *, return_tensors: str) -> Mapping[str, Any]: ...


def seeing_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of a model that looks at pictures."""
    found = cast(object, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)])
    return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)


def drop_language(model: PreTrainedModel, instead: nn.Module) -> None:
    """Put something without weights in the place of the language part."""
    whole = cast(Any, model)
    whole.model.language_model = instead
    whole.lm_head = instead


def picture_rows(
    model: PreTrainedModel, pixels: torch.Tensor, patches: tuple[int, int] | None = None
) -> torch.Tensor:
    """What takes the place of one picture's tokens, ``[tokens, width]``.

    Args:
        pixels: ``[1, 3, side, side]``; or patches ``[n, values]``.
        patches: how many of them lie over and beside each other.
    """
    grid = {} if patches is None else {"image_grid_thw": torch.tensor([[1, *patches]])}
    features = cast(Any, model).model.get_image_features
    found = features(pixel_values=pixels, return_dict=True, **grid).pooler_output
    return cast(torch.Tensor, found[0])


def picture_processor(name: str, fields: Mapping[str, Any]) -> PictureProcessor:
    """The twin of an image processor, without torchvision. Pillow must be installed.

    Raises:
        KeyError: it has none that is known here.
        IncompatibleLibrary: transformers has it no more.
    """
    plain = name.removesuffix("Fast").removesuffix("Pil")
    family = PROCESSORS[plain]
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    made: Any = getattr(module, f"{plain}Pil", None)
    if made is None:
        raise changed("image processors", f"there is no {plain}Pil")
    return cast(PictureProcessor, made.from_dict(dict(fields)))


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
