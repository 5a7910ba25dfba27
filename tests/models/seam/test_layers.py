"""Linear layers of three kinds, one of which has its weights the other way round."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from shoal.models.seam.layers import Conv1D, is_linear, is_turned

from .conftest import Built


@pytest.mark.parametrize(
    ("family", "path", "turned"),
    [
        ("llama", "model.layers.0.mlp.up_proj", False),
        ("gpt2", "transformer.h.0.mlp.c_fc", True),
        ("falcon", "transformer.h.0.mlp.dense_h_to_4h", False),
    ],
)
def test_a_linear_layer_multiplies_by_its_weight(family: str, path: str, turned: bool, built: Built) -> None:
    layer = built(family).get_submodule(path)
    assert is_linear(layer) and is_turned(layer) == turned
    weight, bias = layer.weight.detach(), layer.bias
    x = torch.randn(3, weight.shape[0 if turned else 1])
    expected = x @ (weight if turned else weight.T) + (0.0 if bias is None else bias.detach())
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_what_does_more_is_not_linear() -> None:
    class Scaled(nn.Linear):
        pass

    assert not is_linear(Scaled(2, 2)) and not is_linear(nn.Embedding(2, 2))
    assert is_linear(Conv1D(3, 2)) and Conv1D(3, 2).weight.shape == (2, 3)
