"""The two cores are shared with other tests; models load without a word."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import transformers

from shoal.types import Kernels

from .shaped_spans import BY_BOTH, Models

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


@pytest.fixture(params=BY_BOTH)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Who computes."""
    return cast(Kernels, request.param)


@pytest.fixture(scope="module")
def models(families: Models) -> Models:
    """Tiny checkpoints by family."""
    return families
