"""A tower at work: the part of a model that looks at pictures, with its projector and nothing else.

The model's own class builds itself on the meta device, as for a span (:mod:`shoal.models.build.skeleton`);
the language part is taken out before anything is read.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from shoal.errors import BadWeights, ShoalError
from shoal.models.build.loader import REFUSED, first_line, load_weights
from shoal.models.build.placeholders import Passthrough
from shoal.models.build.tensors import tensor_bytes
from shoal.models.checkpoint.checkpoint import open_checkpoint
from shoal.models.seam.loading import prepared_class, set_ties
from shoal.models.seam.model import PreTrainedModel
from shoal.models.seam.vision import drop_language, picture_rows, seeing_class
from shoal.models.vision.pixels import PicturePixels, empty_pixels
from shoal.models.vision.settings import VisionArray, VisionSettings, seeing_part, tower_config


class Tower:
    """For one thread at a time."""

    def __init__(self, model: PreTrainedModel, settings: VisionSettings, width: int) -> None:
        self._model = model
        self._settings = settings
        self._width = width
        self.tensor_bytes = tensor_bytes(model)
        """Bytes of its weights in memory."""

    @torch.inference_mode()
    def look(self, pixels: PicturePixels) -> VisionArray:
        """The rows of a picture, float32 ``[rows, width]``: what the first block receives in its place.

        Raises:
            BadWeights: what the tower gives is of another shape, or not finite.
        """
        values, patches = torch.from_numpy(pixels.values), None
        if pixels.grid is None or self._settings.patches is None:
            values = values[None]
        else:
            merged = self._settings.patches.merged
            patches = pixels.grid[0] * merged, pixels.grid[1] * merged
        rows = picture_rows(self._model, values, patches).float()
        wanted = (pixels.rows, self._width)
        if tuple(rows.shape) != wanted or not bool(torch.isfinite(rows).all()):
            raise BadWeights(
                f"its tower makes {list(rows.shape)} of a picture, or no numbers: {list(wanted)} are wanted",
                check="check that the config and the weights are of the same model",
            )
        return np.ascontiguousarray(rows.numpy())


def load_tower(folder: Path, settings: VisionSettings, width: int) -> Tower:
    """Build the tower of a model, in float32, reading its tensors alone, and look at an empty picture.

    Raises:
        UnsupportedModel: the model has none that is known here.
        BadWeights: tensors are missing, damaged or of another shape.
    """
    checkpoint = open_checkpoint(folder)
    config = tower_config(checkpoint)

    def hollow(model: PreTrainedModel) -> None:
        drop_language(model, Passthrough())
        set_ties(model, {})

    cls = prepared_class(seeing_class(config), hollow)
    tower = Tower(load_weights(cls, seeing_part(checkpoint), config, "float32"), settings, width)
    try:
        tower.look(empty_pixels(settings))
    except ShoalError:
        raise
    except REFUSED as error:
        raise BadWeights(
            f"{folder}: its tower does not look at a picture ({first_line(error)})",
            check="check that the config and the weights are of the same model",
        ) from error
    return tower
