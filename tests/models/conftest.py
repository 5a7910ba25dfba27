"""Tiny checkpoints, written once for all tests, and the whole model that spans are compared with."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

from shoal.models.seam.model import cache_argument
from shoal.models.store.local_model import LocalModel
from shoal.models.store.store import ModelStore

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class Whole:
    """The reference: plain transformers on the same folder."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        accepted = inspect.signature(self.model.forward).parameters
        self._positions = "position_ids" in accepted

    def logits(self, pieces: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Logits ``[1, n, vocab]`` after each piece, fed one after another."""
        cache = DynamicCache(config=self.model.config)
        position, found = 0, []
        for piece in pieces:
            options = cache_argument(self.model, cache) | {"use_cache": True}
            if self._positions:
                options["position_ids"] = torch.arange(position, position + len(piece))[None]
            with torch.inference_mode():
                found.append(self.model(torch.tensor([piece]), **options).logits)
            position += len(piece)
        return found


@pytest.fixture(scope="session")
def local(families: Callable[[str], LocalModel]) -> Callable[[str], LocalModel]:
    """A family's checkpoint as the store knows it."""
    return families


@pytest.fixture(scope="session")
def folder_of(families: Callable[[str], LocalModel]) -> Callable[[str], Path]:
    """The folder of a family's checkpoint, in several shards."""
    return lambda family: families(family).path


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """An empty store."""
    return ModelStore(tmp_path / "store")
