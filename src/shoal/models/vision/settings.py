"""What a model's files say of pictures: which tokens show one, its rows, how it becomes numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from shoal.errors import BadWeights, UnsupportedModel
from shoal.models.build.skeleton import read_model_config
from shoal.models.checkpoint.checkpoint import CONFIG, Checkpoint, open_checkpoint
from shoal.models.checkpoint.json_file import read_object
from shoal.models.checkpoint.manifest import PICTURE_FILES
from shoal.models.checkpoint.multimodal import CLIP
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.vision import PROCESSORS
from shoal.models.text.pictures import PictureWords

VisionArray: TypeAlias = "npt.NDArray[np.float32]"
"""Pixels, and rows, as float32."""
MAX_SIDE = 4096
"""Pixels of a side of what a tower looks at; the largest of today have 1,540."""
MAX_ROWS = 16384
"""Of one picture; those of today have up to 2,880."""
SHORTEST = "shortest_edge"


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How a model looks at pictures."""

    words: PictureWords
    """What shows a picture in a prompt."""
    rows: int
    """Of every picture, in the place of as many tokens."""
    mutual: bool
    """Whether the rows of a picture see each other, and not only those before."""
    side: int
    """Pixels of each side of what the tower looks at."""
    processor: str
    """The name of transformers' image processor."""
    processing: Mapping[str, Any]
    """Its fields."""

    @property
    def shortest(self) -> int | None:
        """Pixels to which a picture's shorter side is scaled before it is cut; ``None``: it is stretched."""
        size = self.processing.get("size")
        found = cast("dict[str, Any]", size).get(SHORTEST) if isinstance(size, dict) else size
        return found if isinstance(found, int) else None


def vision_settings(folder: Path) -> VisionSettings:
    """What a model's folder says of pictures.

    Raises:
        BadWeights: what it says cannot be.
        UnsupportedModel: it looks at none, or they become numbers in a way that is not known here.
    """
    checkpoint = open_checkpoint(folder)
    return _settings(checkpoint, tower_config(checkpoint))


def tower_config(checkpoint: Checkpoint) -> PretrainedConfig:
    """The config of the whole model, its tower's among it. Raises as ``read_model_config``."""
    return read_model_config(seeing_part(checkpoint))


def seeing_part(checkpoint: Checkpoint) -> Checkpoint:
    """The whole model's config, and the tower's tensors alone. Raises UnsupportedModel: it has none."""
    if checkpoint.tower is None:
        raise UnsupportedModel(f"{checkpoint.folder}: it looks at no pictures", check="ask it for text alone")
    return replace(checkpoint, config=checkpoint.tower.config, tensors=dict(checkpoint.tower.tensors))


def _settings(checkpoint: Checkpoint, config: PretrainedConfig) -> VisionSettings:
    whole = cast(Any, config)
    vision = whole.vision_config
    side, patch = _whole(checkpoint, "image_size", vision.image_size), vision.patch_size
    if not 0 < side <= MAX_SIDE or not isinstance(patch, int) or not 0 < patch <= side:
        raise _bad(checkpoint, f"pictures of {side} pixels in patches of {patch}")
    if config.model_type == "gemma3":
        rows = whole.mm_tokens_per_image
        words = PictureWords(whole.image_token_id, whole.boi_token_id, whole.eoi_token_id, "\n\n")
    else:
        rows = (side // patch) ** 2
        rows += (vision.model_type == CLIP) - (whole.vision_feature_select_strategy == "default")
        words = PictureWords(whole.image_token_id)
    if not isinstance(rows, int) or not 0 < rows <= MAX_ROWS:
        raise _bad(checkpoint, f"{rows} rows for a picture")
    name, processing = _processing(checkpoint.folder)
    found = VisionSettings(words, rows, config.model_type == "gemma3", side, name, processing)
    _check_sizes(checkpoint, found)
    return found


def _processing(folder: Path) -> tuple[str, Mapping[str, Any]]:
    """The name and the fields of the image processor."""
    for file in PICTURE_FILES:
        if not (folder / file).is_file():
            continue
        fields = read_object(folder / file, CONFIG)
        inside = fields.get("image_processor")
        if isinstance(inside, dict):
            fields = cast("dict[str, Any]", inside)
        name = fields.get("image_processor_type", fields.get("feature_extractor_type"))
        if not isinstance(name, str):
            continue
        name = name.replace("FeatureExtractor", "ImageProcessor")
        if name.removesuffix("Fast").removesuffix("Pil") not in PROCESSORS:
            raise UnsupportedModel(
                f"{folder / file}: pictures become numbers by {name[:80]!r}, which is not known here",
                check=f"ask the model for text alone, or take one with {', '.join(sorted(PROCESSORS))}",
            )
        if fields.get("do_pan_and_scan"):
            raise UnsupportedModel(
                f"{folder / file}: pictures are cut into several (do_pan_and_scan), which is not done here",
                check="ask the model for text alone, or set do_pan_and_scan to false",
            )
        return name, fields
    raise UnsupportedModel(
        f"{folder}: it looks at pictures, and no file says how they become numbers",
        check=f"get {PICTURE_FILES[0]} from where the model comes from",
    )


def _check_sizes(checkpoint: Checkpoint, settings: VisionSettings) -> None:
    """Whoever wrote the file says how large pictures are made: no larger than any tower looks at."""
    for field in ("size", "crop_size", "pad_size"):
        value = settings.processing.get(field)
        sizes = cast("dict[str, Any]", value).values() if isinstance(value, dict) else [value]
        if any(not isinstance(size, int) or not 0 < size <= MAX_SIDE for size in sizes if size is not None):
            raise _bad(checkpoint, f"pictures whose {field} is {str(value)[:80]}")


def _whole(checkpoint: Checkpoint, name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _bad(checkpoint, f"{name} {str(value)[:40]} of its tower")
    return value


def _bad(checkpoint: Checkpoint, what: str) -> BadWeights:
    return BadWeights(
        f"{checkpoint.folder}: it says {what}", check="check that the model comes from a source you trust"
    )
