"""A quantiser that is registered is asked about each tensor, is given it alone, and may keep it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaForCausalLM

from shoal.models.seam.loading import QuantizationConfigMixin, fill
from shoal.models.seam.logging import quiet
from shoal.models.seam.quantizer import (
    ConversionOps,
    HfQuantizer,
    register_quantization_config,
    register_quantizer,
)
from shoal.testing.checkpoints import BLOCKS, FAMILIES

METHOD = "shoal-contract"
KEPT = "up_proj.weight"


class Wish(QuantizationConfigMixin):
    """A config that keeps a diary of what its quantiser saw."""

    def __init__(self) -> None:
        self.quant_method: Any = METHOD
        self.seen: list[str] = []
        self.taken: dict[str, torch.Tensor] = {}

    def to_dict(self) -> dict[str, Any]:
        return {"quant_method": METHOD}

    def __deepcopy__(self, memo: object) -> Wish:
        return self


class Taking(ConversionOps):
    def __init__(self, wish: Wish) -> None:
        self._wish = wish

    def convert(self, input_dict, source_patterns, target_patterns, **kwargs):
        assert isinstance(kwargs["model"], LlamaForCausalLM)
        assert len(input_dict) == 1
        (name, value), *_ = input_dict.items()
        self._wish.taken[name] = value[0] if isinstance(value, list) else value
        kwargs["missing_keys"].discard(name)
        return {}


class Diarist(HfQuantizer):
    def __init__(self, quantization_config: Wish, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._wish = quantization_config

    def _process_model_before_weight_loading(self, model, **kwargs):
        assert all(parameter.is_meta for parameter in model.parameters())
        self._wish.seen.append("before")

    def _process_model_after_weight_loading(self, model, **kwargs):
        self._wish.seen.append("after")
        return model

    def update_attn_implementation(self, config):
        self._wish.seen.append("config")
        return config

    def param_needs_quantization(self, model, param_name, **kwargs):
        return param_name.endswith(KEPT)

    def get_quantize_ops(self):
        return Taking(self._wish)

    def is_serializable(self):
        return False

    @property
    def is_trainable(self):
        return False


@pytest.fixture(scope="module", autouse=True)
def registered() -> None:
    register_quantization_config(METHOD)(Wish)
    register_quantizer(METHOD)(Diarist)


def test_it_is_called_before_and_after_and_takes_the_tensors_that_it_wants_one_by_one(
    folder_of: Callable[[str], Path],
) -> None:
    given: dict[str, torch.Tensor] = {}
    for file in folder_of("llama_untied").glob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            given |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    wish = Wish()
    with quiet():
        model, missing = fill(LlamaForCausalLM, FAMILIES["llama_untied"](), given, torch.float32, wish)
    assert wish.seen == ["config", "before", "after"] and missing == []
    assert len(wish.taken) == BLOCKS
    for name, tensor in wish.taken.items():
        assert name.endswith(KEPT) and torch.equal(tensor, given[name])
    place = model.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(place, nn.Linear) and torch.equal(
        place.weight, given["model.layers.0.mlp.down_proj.weight"]
    )
