"""The loader: it fills a model from tensors that we hand it, and lets us change the model before.

Relied on: ``from_pretrained(None, config=…, state_dict=…)`` builds the class on the meta device by its
``__init__``, then fills what is in the model's ``state_dict`` at its end, and nothing else, from tensors or
from safetensors' slices, of which it reads only those that it has a place for. It converts their names and
shapes by the class's ``__name__``, ties what ``all_tied_weights_keys`` lists, and tells which tensors are
missing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn

from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import expect_arguments, expect_members, relied_on
from shoal.models.seam.model import PreTrainedModel

with relied_on("the loader"):
    from transformers.distributed.configuration_utils import DistributedConfig
    from transformers.utils.quantization_config import QuantizationConfigMixin

    expect_members(PreTrainedModel, "prepare_distribute_model")
    expect_arguments(PreTrainedModel.prepare_distribute_model, "distributed_config", "device_map")
    expect_arguments(PreTrainedModel.from_pretrained, "pretrained_model_name_or_path", "config")
    expect_arguments(DistributedConfig, "tp_size")

__all__ = ["QuantizationConfigMixin", "fill", "mark_filled", "prepared_class", "set_ties", "ties"]


_TURN = threading.Lock()
"""While it loads, transformers has the method that ties weights, and torch's default type, replaced for the
whole process: two that load at once would leave them so."""


def prepared_class(
    cls: type[PreTrainedModel], prepare: Callable[[PreTrainedModel], None]
) -> type[PreTrainedModel]:
    """``cls`` with ``prepare`` run at the end of its ``__init__``, when nothing is loaded yet."""

    def __init__(self: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, *args, **kwargs)
        prepare(self)

    def prepare_distribute_model(_: object, *args: Any, **kwargs: Any) -> tuple[Any, None, Any]:
        config, _, meshes = cls.prepare_distribute_model(*args, **kwargs)
        return config, None, meshes  # no map of devices, which only accelerate could read; we move the model

    members = {
        "__init__": __init__,
        "prepare_distribute_model": classmethod(prepare_distribute_model),
        "__module__": cls.__module__,
    }
    # The loader looks its conversions up by the class's name.
    return cast(type[PreTrainedModel], type(cls.__name__, (cls,), members))


def fill(
    cls: type[PreTrainedModel],
    config: PretrainedConfig,
    tensors: dict[str, Any],
    dtype: torch.dtype,
    packing: QuantizationConfigMixin | None = None,
    split: int = 1,
) -> tuple[PreTrainedModel, list[str]]:
    """A model of class ``cls`` with weights from ``tensors``.

    Args:
        tensors: by name, each a tensor or a slice of safetensors that is not read yet.
        packing: packs weights as they are read, one tensor at a time (:mod:`shoal.models.seam.quantizer`).
        split: over how many processes: all of torch.distributed's group.

    Returns:
        The model, and the names of the tensors that it lacks, in order.

    Raises:
        Whatever transformers raises on tensors of another shape; see ``shoal.models.build.loader.REFUSED``.
    """
    with _TURN:
        model, info = cast(
            "tuple[PreTrainedModel, dict[str, Any]]",
            cls.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=dtype,
                quantization_config=packing,
                distributed_config=DistributedConfig(tp_size=split) if split > 1 else None,
                output_loading_info=True,
            ),
        )
    return model, sorted(info["missing_keys"])


def ties(model: PreTrainedModel) -> dict[str, str]:
    """Which parameter is which other one, by name."""
    return dict(cast("dict[str, str]", model.all_tied_weights_keys))


def set_ties(model: PreTrainedModel, tied: dict[str, str]) -> None:
    """Have the loader tie these parameters and no others."""
    model.all_tied_weights_keys = tied


def mark_filled(module: nn.Module) -> None:
    """Tell the loader that a module has what it needs, though no tensor of it shows that."""
    module._is_hf_initialized = True  # pyright: ignore[reportArgumentType]
