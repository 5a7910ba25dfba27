"""Networks of many families with random weights, exported as ONNX graphs. Nothing is downloaded."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from shoal.testing.graphs import NamedArrays
from shoal.testing.zoo.convolutional import MobileNetV3, UNet

OPSET = 17
t: Any = transformers
"""Its models of pictures are not among our types of it."""
EAGER: dict[str, Any] = {"attn_implementation": "eager"}
"""Fused attention is traced to other operators in each version of torch."""


@dataclass(frozen=True, slots=True)
class FamilyGraph:
    """A network, and what it is asked with."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], dict[str, torch.Tensor]]


class _First(nn.Module):
    """A model of transformers, of which the first output is given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *given: torch.Tensor) -> torch.Tensor:
        return self.model(*given, return_dict=False)[0]


def _of(model: Callable[..., Any], config: Any) -> Callable[[], nn.Module]:
    return lambda: _First(model(config))


def _images(size: int = 224, channels: int = 3) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {"images": torch.randn(1, channels, size, size)}


FAMILIES: dict[str, FamilyGraph] = {
    "resnet-50": FamilyGraph(_of(t.ResNetForImageClassification, t.ResNetConfig(num_labels=1000)), _images()),
    "mobilenet-v3": FamilyGraph(MobileNetV3, _images()),
    "convnext-tiny": FamilyGraph(
        _of(t.ConvNextForImageClassification, t.ConvNextConfig(num_labels=1000)), _images()
    ),
    "vit-base": FamilyGraph(
        _of(t.ViTForImageClassification, t.ViTConfig(num_labels=1000, **EAGER)), _images()
    ),
    "swin-tiny": FamilyGraph(_of(t.SwinForImageClassification, t.SwinConfig(num_labels=1000)), _images()),
    "bert-base": FamilyGraph(
        _of(t.BertModel, t.BertConfig(**EAGER)),
        lambda: {
            "input_ids": torch.randint(0, 30000, (1, 48)),
            "attention_mask": torch.ones(1, 48, dtype=torch.int64),
        },
    ),
    "whisper-tiny-encoder": FamilyGraph(
        lambda: _First(t.WhisperModel(t.WhisperConfig(**EAGER)).get_encoder()),
        lambda: {"features": torch.randn(1, 80, 3000)},
    ),
    "u-net": FamilyGraph(UNet, lambda: {"latents": torch.randn(1, 4, 64, 64), "step": torch.rand(1, 1)}),
}
"""By name. Weights and inputs are random, and the same each time."""


def write_family(name: str, file: Path) -> NamedArrays:
    """Write a graph of :data:`FAMILIES`; what to ask it with."""
    family = FAMILIES[name]
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        # torch's other exporter needs onnxscript, and calls this one old; tracing warns of what it fixes.
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, inputs = family.make().eval(), family.inputs()
        _spread(model)
        arguments: dict[str, Any] = {"dynamo": False, "opset_version": OPSET, "do_constant_folding": True}
        torch.onnx.export(
            model,
            tuple(inputs.values()),
            str(file),
            input_names=list(inputs),
            output_names=["out"],
            **arguments,
        )
    return {name: np.ascontiguousarray(array.numpy()) for name, array in inputs.items()}


def _spread(model: nn.Module) -> None:
    """Norms begin as ones and biases as zeros, with which a graph that lost them would still be right."""
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.02)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.add_(torch.rand_like(buffer) * 0.1)
