"""Towers that look at images: what is read of a model's files, and where a prompt shows an image."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as t
from PIL import Image
from safetensors.torch import load_file, save_file

from shoal.errors import BadWeights, UnsupportedModel, UsageError
from shoal.models.checkpoint.checkpoint import open_checkpoint, tower_bytes
from shoal.models.checkpoint.digest import hash_model
from shoal.models.checkpoint.parts import layout
from shoal.models.store.store import ModelStore
from shoal.models.text.pictures import ShownPictures
from shoal.models.vision.pixels import PicturePixels, picture_pixels
from shoal.models.vision.settings import vision_settings
from shoal.models.vision.tower import load_tower
from shoal.testing.seeing import ROW, SEEING, processor_of, write_seeing

FILE = "model.safetensors"
FolderOf = Callable[[str], Path]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> FolderOf:
    root = tmp_path_factory.mktemp("seeing")
    return lambda kind: root / kind if (root / kind).exists() else write_seeing(root / kind, kind)


@pytest.mark.parametrize("kind", SEEING)
def test_a_tower_alone_makes_the_rows_that_the_whole_model_makes(kind: str, folder_of: FolderOf) -> None:
    folder = folder_of(kind)
    settings = vision_settings(folder)
    draws = np.random.default_rng(0).integers(0, 256, (60, 90, 4), np.uint8)
    opened = Image.fromarray(draws)  # with transparency, which no tower knows
    pixels = picture_pixels(opened, settings)
    made = processor_of(kind)(opened.convert("RGB"), return_tensors="np")
    given = torch.from_numpy(np.ascontiguousarray(made["pixel_values"]))
    grid = {"image_grid_thw": torch.from_numpy(made["image_grid_thw"])} if "qwen" in kind else {}
    assert np.array_equal(pixels.values, given if grid else given[0])
    tower = load_tower(folder, settings, 64)
    whole: Any = t.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found = whole.model.get_image_features(pixel_values=given, return_dict=True, **grid)
    assert np.array_equal(tower.look(pixels), found.pooler_output[0].numpy())
    assert tower.tensor_bytes == tower_bytes(folder)
    assert pixels.rows == {"llava": 16, "llava_siglip": 16, "gemma3": 4}.get(kind, 6)
    assert pixels.grid == ((2, 3) if grid else None)
    assert settings.mutual == (kind == "gemma3")


def test_what_looks_at_images_is_a_part_of_its_own(folder_of: FolderOf) -> None:
    checkpoint = open_checkpoint(folder_of("llava"))
    assert checkpoint.tower is not None
    manifest = hash_model(checkpoint).manifest
    parts = [{manifest.items[n].name for n in part.items} for part in layout(manifest)]
    seeing = {entry.name for entry in checkpoint.tower.tensors.values()}
    assert seeing in parts, "nodes have none of it, and clients all"
    assert manifest.config["vision_config"]["model_type"] == "clip_vision_model"
    assert "preprocessor_config.json" in {item.name for item in manifest.items}


def changed(folder: Path, tmp_path: Path, file: str, **fields: Any) -> Path:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    told = json.loads((copy / file).read_text()) | fields
    (copy / file).write_text(json.dumps(told))
    return copy


@pytest.mark.parametrize(
    ("fields", "error", "told"),
    [
        ({"image_processor_type": "Glm4vImageProcessor"}, UnsupportedModel, "is not known here"),
        ({"do_pan_and_scan": True}, UnsupportedModel, "cut into several"),
        ({"size": {"height": 1 << 20, "width": 56}}, BadWeights, "pictures whose size is"),
        ({"size": {"shortest_edge": 0}}, BadWeights, "pictures whose size is"),
        ({"crop_size": {"height": "x", "width": 1}}, BadWeights, "pictures whose crop_size is"),
    ],
)
def test_how_images_become_numbers_is_known_or_refused(
    fields: dict[str, Any], error: type[Exception], told: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    copy = changed(folder_of("llava"), tmp_path, "preprocessor_config.json", **fields)
    with pytest.raises(error, match=told):
        vision_settings(copy)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_pixels": 16385 * 28**2}, "pictures of 3136 to 12845840 pixels"),
        ({"size": {"shortest_edge": 0, "longest_edge": 28**2}}, "pictures of 0 to 784 pixels"),
        ({"size": {"shortest_edge": 3136}}, "pictures of 3136 to None pixels"),
        ({"min_pixels": 1 << 20, "max_pixels": 1 << 19}, "pictures of 1048576 to 524288 pixels"),
        ({"patch_size": 16}, r"cut by \[16, 2, 2\], and its tower by \[14, 2, 2\]"),
        ({"do_resize": False}, "its images are cut by"),
    ],
)
def test_an_image_of_any_shape_becomes_a_bounded_number_of_rows(
    fields: dict[str, Any], told: str, folder_of: FolderOf, tmp_path: Path
) -> None:
    copy = changed(folder_of("qwen2_vl"), tmp_path, "preprocessor_config.json", **fields)
    with pytest.raises(BadWeights, match=told):
        vision_settings(copy)


@pytest.mark.parametrize(
    "fields", [{"patch_size": 65}, {"spatial_merge_size": 9}, {"window_size": 1}, {"in_channels": 4}]
)
def test_a_tower_that_cuts_images_into_no_patches_is_refused(
    fields: dict[str, Any], folder_of: FolderOf, tmp_path: Path
) -> None:
    folder = folder_of("qwen2_5_vl")
    vision = json.loads((folder / "config.json").read_text())["vision_config"] | fields
    with pytest.raises(BadWeights, match=r"it says (patches|pictures) of"):
        vision_settings(changed(folder, tmp_path, "config.json", vision_config=vision))


def test_a_strip_is_too_narrow_and_a_small_image_is_made_larger(folder_of: FolderOf) -> None:
    settings = vision_settings(folder_of("qwen2_vl"))
    with pytest.raises(UsageError, match="too narrow to be scaled"):
        picture_pixels(Image.new("RGB", (2, 400)), settings)
    assert picture_pixels(Image.new("RGB", (3, 2)), settings).grid == (2, 3)


def test_numbers_that_are_not_the_towers_are_no_image(folder_of: FolderOf, tmp_path: Path) -> None:
    size = {"height": 28, "width": 28}
    copy = changed(folder_of("llava"), tmp_path, "preprocessor_config.json", crop_size=size)
    settings = vision_settings(copy)
    with pytest.raises(BadWeights, match=r"makes \[3, 28, 28\] of a picture, and the tower looks at"):
        picture_pixels(Image.new("RGB", (60, 60)), settings)
    with pytest.raises(UsageError, match="too narrow to be scaled"):
        picture_pixels(Image.new("RGB", (1, 60_000)), settings)


def test_without_a_file_that_says_how_it_is_asked_for_text_alone(
    folder_of: FolderOf, tmp_path: Path, store: ModelStore
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder_of("gemma3"), copy)
    (copy / "preprocessor_config.json").unlink()
    assert store.resolve(str(copy)).shape.n_blocks == 6
    with pytest.raises(UnsupportedModel, match="no file says how they become numbers"):
        vision_settings(copy)


def test_a_file_that_is_about_images_makes_another_model_of_one_that_looks_at_them(
    folder_of: FolderOf, tmp_path: Path, store: ModelStore
) -> None:
    folder = folder_of("llava")
    copy = changed(folder, tmp_path, "preprocessor_config.json", image_mean=[0, 0, 0])
    assert store.resolve(str(copy)).digest != store.resolve(str(folder)).digest


def test_an_image_is_shown_where_the_template_says_and_nowhere_else() -> None:
    shown = ShownPictures((3, 2), ROW, 0, "<i>", "[<i>]")
    text = "a<i>b<i>c<i>"
    assert shown.put(text, [(4, 8)]) == ("a[<i>]b<i>c[<i>]", [(6, 10)])
    with pytest.raises(UsageError, match="shows 3 pictures, and 2 are given"):
        shown.put(text, [])
    assert shown.spread([1, ROW, 2, ROW]) == ([1, 0, 0, 0, 2, 0, 0], (1, 5))
    with pytest.raises(UsageError, match="shows 1 pictures"):
        shown.spread([ROW])


@pytest.mark.parametrize("older", [True, False])
def test_tensors_may_have_the_names_of_one_age_or_another(
    older: bool, folder_of: FolderOf, tmp_path: Path
) -> None:
    folder, copy = folder_of("llava"), tmp_path / "copy"
    settings = vision_settings(folder)
    shutil.copytree(folder, copy)
    tensors = {name.removeprefix("model."): tensor for name, tensor in load_file(folder / FILE).items()}
    names = [("language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head.")]
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        plain = name.replace("language_model.model.", "language_model.")
        plain = plain.replace("language_model.lm_head.", "lm_head.")
        if older:
            plain = next(
                (new + plain.removeprefix(old) for old, new in names if plain.startswith(old)), plain
            )
        elif not plain.startswith("lm_head."):
            plain = f"model.{plain}"
        renamed[plain] = tensor
    save_file(renamed, copy / FILE, {"format": "pt"})
    pixels = PicturePixels(np.random.default_rng(0).random((3, 56, 56), np.float32), 16)
    assert np.array_equal(
        load_tower(copy, settings, 64).look(pixels), load_tower(folder, settings, 64).look(pixels)
    )
    assert open_checkpoint(copy).tensors.keys() == open_checkpoint(folder).tensors.keys()
