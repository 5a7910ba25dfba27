"""What a graph's author says of its preprocessing: in the file's own metadata, or beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from shoal.errors import UsageError
from shoal.models.graph.preprocess import Preprocess

OWN_KEY = "shoal.preprocess"
"""Of the file's metadata: what the option ``--preprocess`` would say."""
IMAGE_CONFIG = "preprocessor_config.json"
"""What transformers writes beside a model that takes pictures."""
LARGEST_CONFIG = 1 << 20
RANGES: dict[str, tuple[float, float]] = {
    "NominalRange_0_255": (1.0, 0.0),
    "Normalized_0_1": (1 / 255, 0.0),
    "Normalized_1_1": (2 / 255, 1.0),
}
"""By ONNX's ``Image.NominalPixelRange``: what pixels are multiplied by, and what is taken off."""
PIXELS = {"Gray8": "gray", "Rgb8": "rgb", "Bgr8": "bgr", "Rgba8": "rgb", "Bgra8": "bgr"}
SQUARE = ("Beit", "DeiT", "EfficientFormer")
"""Names of transformers' image processors begin so of which a size that is one number means both sides, also
where something is cut out of the middle afterwards. To the others it is the shorter side then."""
RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""As Pillow numbers them."""


def authors_preprocess(metadata: Mapping[str, str], file: Path) -> str:
    """What a graph's file, or what lies beside it, says of preprocessing; empty where that is nothing.

    What cannot be understood is taken for nothing: who asks can say it by options.
    """
    try:
        said = Preprocess.parse(metadata.get(OWN_KEY, "")).over(_of_image_keys(metadata))
        return str(said.over(_of_config(file.parent / IMAGE_CONFIG)))
    except (UsageError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return ""  # a stranger's JSON may be of any shape


def _of_image_keys(metadata: Mapping[str, str]) -> Preprocess:
    """ONNX's own keys for pictures."""
    found: dict[str, str] = {}
    if channels := PIXELS.get(metadata.get("Image.BitmapPixelFormat", "")):
        found["channels"] = channels
    if (numbers := RANGES.get(metadata.get("Image.NominalPixelRange", ""))) is not None:
        found |= {"scale": str(numbers[0]), "mean": str(numbers[1])}
    return _parsed(found)


def _of_config(file: Path) -> Preprocess:
    if not file.is_file() or file.stat().st_size > LARGEST_CONFIG:
        return Preprocess()
    config: dict[str, Any] = json.loads(file.read_bytes())
    found: dict[str, str] = {}
    cut = config.get("do_center_crop") and config.get("crop_size") is not None
    if config.get("do_resize", True) and config.get("size") is not None:
        size = config["size"]
        if cut and isinstance(size, int) and not _kind(config).startswith(SQUARE):
            size = {"shortest_edge": size}
        found |= _sizes(size)
    if cut:
        sides = _sizes(config["crop_size"])
        found |= sides if "shortest" in found else {"crop": sides["size"]}
    elif "shortest" in found:
        found.pop("shortest")  # of pictures of any shape: the graph's input says the size
    if not config.get("do_rescale", True):
        found["scale"] = "1"
    elif "rescale_factor" in config:
        found["scale"] = str(config["rescale_factor"])
    flipped = bool(config.get("do_flip_channel_order"))
    if flipped:
        found["channels"] = "bgr"
    if config.get("do_normalize", True) and "image_mean" in config:
        # These come before the channels are turned round, and here after it.
        found |= {"mean": _list(config["image_mean"], flipped), "std": _list(config["image_std"], flipped)}
    if config.get("resample") in RESAMPLE:
        found["resample"] = RESAMPLE[config["resample"]]
    return _parsed(found)


def _sizes(size: Any) -> dict[str, str]:
    """A size as transformers writes it: a number, or sides by name."""
    if isinstance(size, int):
        return {"size": f"{size}x{size}"}
    sides = cast("dict[str, Any]", size)
    if "shortest_edge" in sides:
        return {"shortest": str(sides["shortest_edge"])}
    return {"size": f"{sides['height']}x{sides['width']}"} if {"height", "width"} <= sides.keys() else {}


def _kind(config: Mapping[str, Any]) -> str:
    """The class that does it in transformers, as newer or older ones are called."""
    return str(config.get("image_processor_type", config.get("feature_extractor_type", "")))


def _list(numbers: Any, flipped: bool) -> str:
    if not isinstance(numbers, list):
        return str(numbers)
    each = cast("list[Any]", numbers)
    return ":".join(map(str, reversed(each) if flipped else each))


def _parsed(found: Mapping[str, str]) -> Preprocess:
    return Preprocess.parse(",".join(f"{name}={value}" for name, value in found.items()))
