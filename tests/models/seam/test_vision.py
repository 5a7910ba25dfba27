"""Models that look at images: what can be left of them, how images become numbers, who sees whom."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText, DynamicCache

from shoal.models.seam.vision import (
    PROCESSORS,
    drop_language,
    mutual_masks,
    picture_processor,
    picture_rows,
    seeing_class,
)
from shoal.testing.checkpoints import FAMILIES
from shoal.testing.seeing import SEEING


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_without_its_language_part_a_model_makes_the_same_rows_of_an_image(kind: str) -> None:
    config = SEEING[kind]()
    model: Any = AutoModelForImageTextToText.from_config(config)
    assert type(model) is seeing_class(config)
    pixels = torch.rand(1, 3, 56, 56)
    with torch.inference_mode():
        rows = picture_rows(model, pixels)
        drop_language(model, nn.Identity())
        assert torch.equal(picture_rows(model, pixels), rows)
    assert rows.shape == ({"llava": 16, "gemma3": 4}[kind], 64)
    assert not [name for name in model.state_dict() if "language_model" in name or "lm_head" in name]


@pytest.mark.parametrize("name", sorted(PROCESSORS.keys() - {"Qwen2VLImageProcessor"}))
@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_an_image_processor_has_a_twin_that_needs_pillow_alone(name: str, suffix: str) -> None:
    square = {"height": 28, "width": 28}
    made = picture_processor(name + suffix, {"size": square, "crop_size": square, "image_mean": [0, 0, 0]})
    pixels = made(Image.new("RGB", (40, 30), (255, 0, 0)), return_tensors="np")["pixel_values"]
    assert np.shape(pixels) == (1, 3, 28, 28)
    assert np.allclose(pixels[0][1:], 0) and (pixels[0][0] > 1).all()


def test_others_are_not_known() -> None:
    with pytest.raises(KeyError):
        picture_processor("Glm4vImageProcessor", {})


def test_masks_let_tokens_of_a_stretch_see_each_other_within_the_window() -> None:
    config = FAMILIES["gemma3"]()
    config.sliding_window, config._attn_implementation = 3, "sdpa"
    positions, mutual = torch.arange(8), [(1, 3), (4, 8)]
    masks = mutual_masks(config, torch.zeros(1, 8, 64), DynamicCache(config=config), positions, mutual)
    seen, by = positions[None], positions[:, None]
    within = seen <= by
    for first, last in mutual:
        within |= (seen >= first) & (seen < last) & (by >= first) & (by < last)
    assert torch.equal(masks["full_attention"][0, 0], within)
    assert torch.equal(masks["sliding_attention"][0, 0], within & (seen > by - 3))
