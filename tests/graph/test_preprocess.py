"""What is said of preprocessing, by who asks and by a graph's author."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.errors import UsageError
from shoal.models.graph.author import IMAGE_CONFIG, OWN_KEY, authors_preprocess
from shoal.models.graph.preprocess import Preprocess


def test_it_is_read_as_it_is_written() -> None:
    text = "shortest=256,size=224x192,resample=bicubic,channels=bgr,scale=0.5,mean=1.0:2.0:3.0,std=2.0"
    read = Preprocess.parse(f"{text},layout=channels-last,rate=16000")
    assert str(read) == f"{text},layout=channels-last,rate=16000"
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
    assert authors_preprocess({}, tmp_path / "graph.onnx") == "size=8x4,resample=bicubic"


@pytest.mark.parametrize(
    "config", ["[]", "{", '{"size": {"shortest_edge": []}}', '{"image_mean": 1}', "1" * 2_000_000]
)
def test_what_an_author_says_that_cannot_be_is_nothing(config: str, tmp_path: Path) -> None:
    (tmp_path / IMAGE_CONFIG).write_text(config)
    assert authors_preprocess({}, tmp_path / "graph.onnx") == ""
    assert authors_preprocess({OWN_KEY: "size=0"}, tmp_path / "graph.onnx") == ""
