"""What contracts are tried on: small models, and a module of the seam that is imported anew."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from transformers import PreTrainedModel

from shoal.models import seam
from shoal.models.seam.model import causal_lm_class
from shoal.testing.checkpoints import FAMILIES

Built = Callable[[str], PreTrainedModel]


def import_again(name: str) -> ModuleType:
    """A module of the seam as if it were imported first now; the one that others have stays."""
    spec = importlib.util.find_spec(f"{seam.__name__}.{name}")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def built() -> Built:
    """A family's whole model, with random weights."""

    def build(family: str) -> PreTrainedModel:
        config = FAMILIES[family]()
        cls = causal_lm_class(config)
        assert cls is not None
        torch.manual_seed(0)
        return cls(config).eval()

    return build
