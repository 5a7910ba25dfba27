"""A swarm is compared with transformers only where both run the model's own modules."""

from __future__ import annotations

import pytest

from shoal.bench.overhead import compared_format
from shoal.errors import UsageError


def test_a_model_that_has_kernels_is_compared_in_fp32_which_they_leave_to_its_modules() -> None:
    assert compared_format("auto", "BF16", shaped=True) == "fp32"
    assert compared_format("fp32", "BF16", shaped=True) == "fp32"
    with pytest.raises(UsageError, match="products of their own") as raised:
        compared_format("bf16", "BF16", shaped=True)
    assert raised.value.next_command == "shoal bench swarm --format bf16"


def test_another_model_is_compared_in_what_its_checkpoint_has() -> None:
    assert compared_format("auto", "BF16", shaped=False) == "bf16"
    assert compared_format("bf16", "BF16", shaped=False) == "bf16"
    assert compared_format("auto", "F32", shaped=False) == "fp32"
