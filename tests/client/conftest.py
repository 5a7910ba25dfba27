"""A small checkpoint, the whole model beside it, and three nodes that serve it in memory."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache
from trio.testing import MockClock

from shoal.executor.fused import FusedRunner
from shoal.models.seam.model import cache_argument
from shoal.testing import swarm as testing
from shoal.testing.checkpoints import write_checkpoint
from shoal.types import Span
from tests.one_process import KERNELS, OneProcess

THIRDS = [Span(0, 2), Span(2, 3), Span(3, 6)]
PROMPT = list(range(5, 30))


def memory_swarm(
    home: Path, checkpoint: Path, spans: list[Span], **options: Any
) -> AbstractAsyncContextManager[testing.MemorySwarm]:
    """A swarm that gives the bits of :class:`OneProcess`, unless the options say otherwise."""
    return testing.memory_swarm(home, checkpoint, spans, **KERNELS | options)


class Whole:
    """The whole model in transformers: what a swarm in fp32 must give, bit for bit."""

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


@pytest.fixture(scope="session")
def one_process(tmp_path_factory, checkpoint):
    return OneProcess(tmp_path_factory.mktemp("whole"), checkpoint)


@pytest.fixture
def whole(one_process):
    one_process.restart()
    return one_process


@pytest.fixture
def step_by_step(monkeypatch):
    """Decode steps go the ordinary way in each hop, where a test reaches them, and not byte to byte."""
    monkeypatch.setattr(FusedRunner, "decode_steps", lambda runner: None)


@pytest.fixture
def autojump_clock():
    return MockClock(autojump_threshold=0.02)
