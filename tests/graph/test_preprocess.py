"""What is said of preprocessing, by who asks and by a graph's author."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import BeitImageProcessor, CLIPImageProcessor

from shoal.client.graph.pictures import picture_array
from shoal.errors import UsageError
from shoal.models.graph.author import IMAGE_CONFIG, OWN_KEY, authors_preprocess
from shoal.models.graph.manifest import GraphValue
from shoal.models.graph.preprocess import Preprocess

BEIT = {"image_processor_type": "BeitImageProcessor"}


def test_it_is_read_as_it_is_written() -> None:
    text = "shortest=256,size=224x192,crop=96x64,resample=bicubic,channels=bgr,scale=0.5,mean=1.0:2.0:3.0"
    text += ",std=2.0,layout=channels-last,rate=16000"
    read = Preprocess.parse(text)
    assert str(read) == text
    assert (read.size, read.mean, read.std) == ((224, 192), (1, 2, 3), (2,))
    assert Preprocess.parse("size=32, scale=1/255") == Preprocess(size=(32, 32), scale=1 / 255)
    assert Preprocess.parse("") == Preprocess()


@pytest.mark.parametrize(
    "text",
    [
        "colour=red",
        "size=0",
        "size=99999",
        "size=2x",
        "mean=a",
        "std=0",
        "scale=1/0",
        "scale=inf",
        "mean=1:2:3:4:5",
    ],
)
def test_what_cannot_be_is_refused_with_what_can(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        Preprocess.parse(text)
    assert text.partition("=")[0] in raised.value.message
    assert "=" in raised.value.check


def test_what_is_asked_for_goes_before_what_the_author_says() -> None:
    author = Preprocess.parse("size=224,scale=1/255,mean=0.5")
    assert str(Preprocess.parse("size=32,mean=0").over(author)) == f"size=32x32,scale={1 / 255},mean=0.0"


def test_an_author_says_it_in_the_metadata_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "graph.onnx"
    assert authors_preprocess({}, file) == ""
    assert authors_preprocess({OWN_KEY: "size=8,mean=0.5"}, file) == "size=8x8,mean=0.5"
    onnx = {"Image.BitmapPixelFormat": "Bgr8", "Image.NominalPixelRange": "Normalized_1_1"}
    assert authors_preprocess(onnx, file) == f"channels=bgr,scale={2 / 255},mean=1.0"
    assert authors_preprocess(onnx | {OWN_KEY: "channels=rgb"}, file).startswith("channels=rgb,scale=")


def test_an_author_says_it_as_transformers_does(tmp_path: Path) -> None:
    config = {
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "rescale_factor": 0.25,
        "image_mean": [0.5, 0.25, 0.5],
        "image_std": [1, 2, 4],
        "resample": 3,
    }
    (tmp_path / IMAGE_CONFIG).write_text(json.dumps(config))
    said = authors_preprocess({}, tmp_path / "graph.onnx")
    assert said == "shortest=256,size=224x224,resample=bicubic,scale=0.25,mean=0.5:0.25:0.5,std=1.0:2.0:4.0"
    config |= {"do_rescale": False, "do_normalize": False, "do_center_crop": False}
    (tmp_path / IMAGE_CONFIG).write_text(json.dumps(config | {"size": {"height": 8, "width": 4}}))
    assert authors_preprocess({}, tmp_path / "graph.onnx") == "size=8x4,resample=bicubic,scale=1.0"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"size": 256, "crop_size": 224}, "shortest=256,size=224x224"),
        ({"size": 256, "crop_size": 224} | BEIT, "size=256x256,crop=224x224"),
        ({"size": {"height": 256, "width": 128}, "crop_size": 96}, "size=256x128,crop=96x96"),
        ({"do_resize": False, "size": 256, "crop_size": 224}, "crop=224x224"),
        ({"do_center_crop": False, "size": 224, "crop_size": 200}, "size=224x224"),
    ],
)
def test_a_size_and_what_is_cut_out_are_as_in_transformers(
    config: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (tmp_path / IMAGE_CONFIG).write_text(json.dumps({"do_center_crop": True} | config))
    assert authors_preprocess({}, tmp_path / "graph.onnx") == said


def test_means_are_in_the_order_of_channels_that_are_turned_round(tmp_path: Path) -> None:
    config = {"do_flip_channel_order": True, "image_mean": [1, 2, 3], "image_std": 0.5}
    (tmp_path / IMAGE_CONFIG).write_text(json.dumps(config))
    said = authors_preprocess({}, tmp_path / "graph.onnx")
    assert said == "channels=bgr,mean=3.0:2.0:1.0,std=0.5"


def test_transformers_makes_the_same_pictures_of_it(tmp_path: Path) -> None:
    """Its own processors, with what they write beside a model."""
    random = np.random.default_rng(0)
    picture = tmp_path / "picture.png"
    Image.fromarray(random.integers(0, 256, (20, 33, 3), np.uint8)).save(picture)
    sizes = {"do_center_crop": True, "resample": 0, "crop_size": {"height": 12, "width": 12}}
    for made in (
        CLIPImageProcessor(size={"shortest_edge": 16}, **sizes),
        CLIPImageProcessor(size={"shortest_edge": 16}, do_rescale=False, do_normalize=False, **sizes),
        BeitImageProcessor(size={"height": 16, "width": 16}, **sizes),
    ):
        made.save_pretrained(tmp_path)
        how = Preprocess.parse(authors_preprocess({}, tmp_path / "graph.onnx"))
        found = picture_array(picture, how, GraphValue("x", "float32", (1, 3, 12, 12)))
        with Image.open(picture) as opened:
            expected = made(opened, return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    "config", ["[]", "{", '{"size": {"shortest_edge": []}}', '{"image_mean": 1}', "1" * 2_000_000]
)
def test_what_an_author_says_that_cannot_be_is_nothing(config: str, tmp_path: Path) -> None:
    (tmp_path / IMAGE_CONFIG).write_text(config)
    assert authors_preprocess({}, tmp_path / "graph.onnx") == ""
    assert authors_preprocess({OWN_KEY: "size=0"}, tmp_path / "graph.onnx") == ""
