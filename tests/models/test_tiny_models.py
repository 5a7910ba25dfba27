"""Whether the tokens of the model that swarms are compared with tell a right computation from a wrong one."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from shoal.models.seam.model import cache_argument
from shoal.testing.checkpoints import BLOCKS, write_checkpoint

PROMPT = list(range(5, 30))
COUNT = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.inference_mode()
def greedy(model, spoil=lambda cache: None):
    """The tokens that follow the prompt, where ``spoil`` had its way with the prompt's KV."""
    cache = DynamicCache(config=model.config)

    def likeliest(tokens):
        given = model(torch.tensor([tokens]), **cache_argument(model, cache), use_cache=True)
        return int(given.logits[0, -1].argmax())

    tokens = [likeliest(PROMPT)]
    spoil(cache)
    while len(tokens) < COUNT:
        tokens.append(likeliest(tokens[-1:]))
    return tokens


def test_its_greedy_tokens_are_varied(model):
    """One that says the same whatever came before is right with any KV."""
    assert len(set(greedy(model))) >= COUNT - 2


@pytest.mark.parametrize("number", range(BLOCKS))
def test_its_greedy_tokens_depend_on_every_block(model, number):
    other = copy.deepcopy(model)
    for weights in other.model.layers[number].parameters():
        weights.data *= 0.9
    assert greedy(other) != greedy(model)


@pytest.mark.parametrize("number", range(BLOCKS))
def test_its_greedy_tokens_depend_on_the_kv_of_every_block(model, number):
    def spoil(cache):
        cache.layers[number].values[:, :, len(PROMPT) // 2 :] = 0

    assert greedy(model, spoil) != greedy(model)
