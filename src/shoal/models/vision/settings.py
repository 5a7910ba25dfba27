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
from shoal.models.checkpoint.multimodal import CLIP, MROPE
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.vision import PROCESSORS
from shoal.models.text.pictures import PictureWords

VisionArray: TypeAlias = "npt.NDArray[np.float32]"
"""Pixels, and rows, as float32."""
MAX_SIDE = 4096
"""Pixels of a side of what a tower looks at; the largest of today have 1,540."""
MAX_ROWS = 16384
"""Of one picture; Qwen2-VL takes as many."""
SHORTEST, LONGEST = "shortest_edge", "longest_edge"
MAX_PATCH, MAX_MERGED = 64, 8
"""Pixels of a patch's side, and patches of the side of what becomes one row. Of today: 16, and 2."""
MAX_PIXELS = 32 << 20
"""Of a picture of any shape, in all frames of its patches; those of today have up to 26 million."""
_PATCH_FIELDS = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
"""What an image processor says of patches, and what it means where it does not."""


@dataclass(frozen=True, slots=True)
class PatchSettings:
    """How a picture of any shape is scaled and cut into patches, of which squares become one row each."""

    side: int
    """Pixels of a patch's side."""
    merged: int
    """Patches of the side of such a square."""
    frames: int
    """Pictures of a film that a patch goes through: a picture is as many of the same."""

    @property
    def values(self) -> int:
        """Numbers of a patch."""
        return 3 * self.frames * self.side**2

    @property
    def step(self) -> int:
        """Pixels of the side of what becomes one row."""
        return self.side * self.merged


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """How a model looks at pictures."""

    words: PictureWords
    """What shows a picture in a prompt."""
    rows: int
    """Of every picture, in the place of as many tokens; 0 where ``patches`` says."""
    mutual: bool
    """Whether the rows of a picture see each other, and not only those before."""
    side: int
    """Pixels of each side of what the tower looks at; 0 where ``patches`` says."""
    processor: str
    """The name of transformers' image processor."""
    processing: Mapping[str, Any]
    """Its fields."""
    patches: PatchSettings | None = None
    """Where a picture has as many rows as its shape says."""

    @property
    def shortest(self) -> int | None:
        """Pixels to which a picture's shorter side is scaled before it is cut; ``None``: it is not cut."""
        if self.patches is not None:
            return None
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
    if config.model_type in MROPE:
        return _of_any_shape(checkpoint, whole)
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


def _of_any_shape(checkpoint: Checkpoint, whole: Any) -> VisionSettings:
    """Those of Qwen-VL. Videos are not shown."""
    vision, (name, fields) = whole.vision_config, _processing(checkpoint.folder)
    names = ("patch_size", "spatial_merge_size", "temporal_patch_size")
    side, merged, frames = (_whole(checkpoint, name, getattr(vision, name)) for name in names)
    if not 0 < side <= MAX_PATCH or not 0 < merged <= MAX_MERGED or not 0 < frames <= MAX_MERGED:
        raise _bad(checkpoint, f"patches of {side} pixels, of which {merged}×{merged} become one row")
    window = getattr(vision, "window_size", side * merged)
    if vision.in_channels != 3 or not isinstance(window, int) or window < side * merged:
        raise _bad(checkpoint, f"pictures of {vision.in_channels} colours, in windows of {window} pixels")
    patches = PatchSettings(side, merged, frames)
    told = [fields.get(field, there) for field, there in _PATCH_FIELDS.items()]
    if told != [side, merged, frames] or fields.get("do_resize") is False:
        raise _bad(
            checkpoint, f"that its images are cut by {told}, and its tower by {[side, merged, frames]}"
        )
    least, most = _pixels(fields)
    if not all(type(number) is int for number in (least, most)) or not (
        0 < least <= most <= min(MAX_ROWS * patches.step**2, MAX_PIXELS // frames)
    ):
        raise _bad(checkpoint, f"pictures of {str(least)[:40]} to {str(most)[:40]} pixels")
    return VisionSettings(PictureWords(whole.image_token_id), 0, False, 0, name, fields, patches)


def _pixels(fields: Mapping[str, Any]) -> tuple[Any, Any]:
    """The fewest and the most to which a picture is scaled, as the image processor reads its fields."""
    size = fields.get("size")
    usual = {SHORTEST: 56**2, LONGEST: 28**2 * 1280}
    said = cast("dict[str, Any]", size) if isinstance(size, dict) else usual
    least, most = fields.get("min_pixels"), fields.get("max_pixels")
    return (
        said.get(SHORTEST) if least is None else least,
        said.get(LONGEST) if most is None else most,
    )


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
