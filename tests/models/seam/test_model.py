"""The class for a config, and what its forward takes and does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from shoal.models.seam.cache import DynamicCache
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.model import CACHE_NAMES, accepted_inputs, cache_argument, causal_lm_class
from shoal.testing.checkpoints import FAMILIES

from .conftest import Built


class NotOfText(PretrainedConfig):
    model_type = "not_of_text"


def test_the_class_is_the_one_that_generates_text() -> None:
    assert causal_lm_class(FAMILIES["llama"]()) is LlamaForCausalLM
    assert causal_lm_class(NotOfText()) is None


@pytest.mark.models
@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_of_every_family_takes_its_cache_by_one_name_that_we_know(family: str) -> None:
    config = FAMILIES[family]()
    cls = causal_lm_class(config)
    assert cls is not None
    with torch.device("meta"):
        model = cls(config)
    for module in (model, model.base_model):
        assert len(accepted_inputs(module) & set(CACHE_NAMES)) == 1, sorted(accepted_inputs(module))
    assert {"input_ids", "inputs_embeds", "use_cache"} <= accepted_inputs(model.base_model)


def test_the_arguments_are_those_of_the_forward_as_it_is_written() -> None:
    """Decorators keep the signature: without that the cache would find no place."""
    accepted = accepted_inputs(LlamaForCausalLM)
    assert {"input_ids", "position_ids", "inputs_embeds", "use_cache", "logits_to_keep"} <= accepted
    assert not {"args", "self_"} & accepted


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_what_is_cached_is_not_computed_again(family: str, built: Built) -> None:
    model = built(family)
    tokens = torch.tensor([[5, 6, 7, 8]])
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        whole = model(tokens, use_cache=False).logits[0, -1]
        model(tokens[:, :3], **cache_argument(model, cache), use_cache=True)
        last = model(tokens[:, 3:], **cache_argument(model, cache), use_cache=True).logits[0, -1]
    assert torch.allclose(whole, last, atol=1e-5)


def test_embeddings_do_in_place_of_tokens(built: Built) -> None:
    model = built("llama")
    tokens = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        embedded = model.get_input_embeddings()(tokens)
        given = model.base_model(inputs_embeds=embedded, position_ids=torch.arange(3)[None], use_cache=False)
        assert torch.equal(given.last_hidden_state, model.base_model(tokens).last_hidden_state)
        assert torch.equal(model.get_output_embeddings()(given.last_hidden_state), model(tokens).logits)


def test_a_base_model_runs_as_many_blocks_as_its_config_says_each_through_its_call(built: Built) -> None:
    model = built("llama")
    base = model.base_model
    base.layers = nn.ModuleList(list(base.layers)[:4])
    base.config.num_hidden_layers = 2
    ran: list[int] = []
    for index, block in enumerate(base.layers):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    base(torch.tensor([[5, 6]]))
    assert ran == [0, 1]


def test_a_model_builds_itself_without_memory() -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(FAMILIES["llama"]())
    assert all(parameter.is_meta for parameter in model.parameters())
