"""A small checkpoint, the whole model beside it, and three nodes that serve it in memory."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from trio.testing import MockClock

from shoal.models.seam.model import cache_argument
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span

THIRDS = [Span(0, 2), Span(2, 3), Span(3, 6)]
PROMPT = list(range(5, 30))


class Whole:
    """The whole model in transformers: what every swarm must give, bit for bit."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.cache = DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def step(self, tokens):
        cache = cache_argument(self.model, self.cache)
        return self.model(torch.tensor([tokens]), **cache, use_cache=True).logits[0].numpy()

    def greedy(self, prompt, count):
        self.cache = DynamicCache(config=self.model.config)
        chosen = [int(self.step(prompt)[-1].argmax())]
        while len(chosen) < count:
            chosen.append(int(self.step(chosen[-1:])[-1].argmax()))
        return chosen


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def repetitive(tmp_path_factory):
    """A model whose greedy tokens come again and again, and yet depend on all its blocks."""
    return write_checkpoint(tmp_path_factory.mktemp("repetitive"), "llama_untied")


@pytest.fixture
def whole(checkpoint):
    return Whole(checkpoint)


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0.02)
