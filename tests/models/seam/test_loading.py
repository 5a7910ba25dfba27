"""The loader fills what a model has a place for when its own ``__init__`` is done, and reads nothing else."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from shoal.models.seam.loading import fill, mark_filled, prepared_class, set_ties, ties
from shoal.models.seam.logging import quiet
from shoal.models.seam.model import causal_lm_class
from shoal.testing.checkpoints import FAMILIES


@pytest.fixture(autouse=True)
def silent():
    with quiet():
        yield


@pytest.fixture
def tensors(folder_of: Callable[[str], Path]) -> Callable[[str], dict[str, torch.Tensor]]:
    def read(family: str) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for file in folder_of(family).glob("*.safetensors"):
            with safe_open(file, framework="pt") as opened:
                found |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return found

    return read


class Unread:
    """A tensor that nobody may read, as safetensors would hand it over."""

    def get_shape(self) -> list[int]:
        return [1]

    def get_dtype(self) -> str:
        return "F32"

    def __getitem__(self, _: object) -> torch.Tensor:
        raise AssertionError("it was read")


def two_blocks(model: PreTrainedModel) -> None:
    model.base_model.layers = nn.ModuleList(list(model.base_model.layers)[:2])


def test_a_model_is_filled_from_what_it_is_handed(tensors: Callable[[str], Any]) -> None:
    given = tensors("llama_untied")
    model, missing = fill(LlamaForCausalLM, FAMILIES["llama_untied"](), given, torch.float32)
    assert missing == []
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, given[name]), name


def test_what_is_missing_is_named(tensors: Callable[[str], Any]) -> None:
    given = tensors("llama_untied")
    del given["model.norm.weight"], given["model.layers.3.mlp.up_proj.weight"]
    _, missing = fill(LlamaForCausalLM, FAMILIES["llama_untied"](), given, torch.float32)
    assert missing == ["model.layers.3.mlp.up_proj.weight", "model.norm.weight"]


def test_a_model_can_be_changed_first_and_only_what_is_left_is_read(tensors: Callable[[str], Any]) -> None:
    given = tensors("llama_untied")
    there = ("model.layers.0.", "model.layers.1.", "model.embed", "model.norm", "lm_head")
    guarded = {name: t if name.startswith(there) else Unread() for name, t in given.items()}
    on_meta: list[bool] = []

    def prepare(model: PreTrainedModel) -> None:
        on_meta.append(all(parameter.is_meta for parameter in model.parameters()))
        two_blocks(model)

    cls = prepared_class(LlamaForCausalLM, prepare)
    assert issubclass(cls, LlamaForCausalLM) and cls.__name__ == "LlamaForCausalLM"
    model, missing = fill(cls, FAMILIES["llama_untied"](), guarded, torch.float32)
    assert on_meta == [True] and missing == [] and len(model.base_model.layers) == 2


def test_tensors_are_converted_as_for_the_class_itself(tensors: Callable[[str], Any]) -> None:
    """Mixtral's experts lie in a file one by one, and in the model together."""
    given, config = tensors("mixtral"), FAMILIES["mixtral"]()
    assert any(".experts.3." in name for name in given)
    plain = causal_lm_class(config)
    assert plain is not None
    model, missing = fill(prepared_class(plain, two_blocks), config, given, torch.float32)
    whole, _ = fill(plain, config, tensors("mixtral"), torch.float32)
    assert missing == []
    merged = [name for name in model.state_dict() if name.endswith("experts.gate_up_proj")]
    assert len(merged) == 2
    for name in merged:
        assert torch.equal(model.state_dict()[name], whole.state_dict()[name])


def test_tied_parameters_are_listed_by_name_and_stay_one(tensors: Callable[[str], Any]) -> None:
    listed: list[dict[str, str]] = []
    cls = prepared_class(LlamaForCausalLM, lambda model: listed.append(ties(model)))
    model, missing = fill(cls, FAMILIES["llama"](), tensors("llama"), torch.float32)
    assert listed == [{"lm_head.weight": "model.embed_tokens.weight"}]
    assert missing == [] and model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_ties_can_be_taken_off(tensors: Callable[[str], Any]) -> None:
    cls = prepared_class(LlamaForCausalLM, lambda model: set_ties(model, {}))
    given = tensors("llama")
    given.pop("lm_head.weight", None)
    _, missing = fill(cls, FAMILIES["llama"](), given, torch.float32)
    assert missing == ["lm_head.weight"]


@pytest.mark.parametrize("marked", [True, False])
def test_a_module_that_is_marked_is_not_initialised(marked: bool, tensors: Callable[[str], Any]) -> None:
    """Experts whose weights are packed have none that could be."""

    def take_out(model: PreTrainedModel) -> None:
        for block in model.base_model.layers:
            del block.mlp.experts.gate_up_proj
            if marked:
                mark_filled(block.mlp.experts)

    config = FAMILIES["mixtral"]()
    cls = causal_lm_class(config)
    assert cls is not None
    with nullcontext() if marked else pytest.raises(AttributeError, match="gate_up_proj"):
        fill(prepared_class(cls, take_out), config, tensors("mixtral"), torch.float32)


def test_one_process_alone_has_no_mesh() -> None:
    assert PreTrainedModel.prepare_distribute_model(None, device_map=None) == (None, None, None)
