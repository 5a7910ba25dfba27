"""What a model's parts hold, read and compute, by its config alone: no weights are needed.

The model's own class builds itself on the meta device, where tensors have shapes and no memory, and two
tokens go through it. So the numbers are those of the model's own code, whatever its family.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn

from shoal.errors import UnsupportedModel
from shoal.executor.ends import head_format
from shoal.executor.packed import is_packable
from shoal.executor.shape import llama_shape
from shoal.models.build.blocks import find_blocks
from shoal.models.build.kv import cache_layer_bytes
from shoal.models.build.loader import REFUSED, first_line
from shoal.models.build.skeleton import causal_class
from shoal.models.seam.cache import DynamicCache, LinearAttentionCacheLayerMixin
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.experts import EXPERT_WEIGHTS, choose_experts, register_experts
from shoal.models.seam.layers import is_turned
from shoal.models.seam.model import PreTrainedModel, cache_argument
from shoal.planning.roofline import FLOAT, KvElement, PartCost, SpanCost
from shoal.types import Format, Kv

TOKENS = 2
"""That go through the model to see its caches."""
ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "top_k_experts")
"""Under these names configs say how many experts a token takes."""
METHOD = "shoal-shapes"


def _no_experts(
    experts: Any, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """In place of experts, whose choice depends on values that the meta device has not."""
    return torch.empty_like(hidden)


register_experts(METHOD, _no_experts)


def model_cost(
    config: PretrainedConfig, format: Format, kv: Kv = "auto", weight_bytes: float = 0.0
) -> SpanCost:
    """The cost of a whole model: its blocks and its head.

    On the kernels, where the model has their shape, with KV in pages; else as its own modules, in which KV
    and the head are float32.

    Args:
        weight_bytes: bytes of a weight, where the model's files say it; 0: what the format says.

    Raises:
        UnsupportedModel: the config makes no model that can be served in spans.
    """
    fused = format != "fp32" and llama_shape(config.to_dict()) is not None
    model, layers = _built(config)
    blocks = find_blocks(model, int(config.num_hidden_layers)).modules
    costs = [
        _block_cost(block, layer, config, format=format, kv=kv, fused=fused)
        for block, layer in zip(blocks, layers, strict=True)
    ]
    costs = [replace(cost, weight_bytes=weight_bytes) for cost in costs]
    return SpanCost(tuple(costs), int(config.hidden_size), _head_cost(model, format, fused))


def _built(config: PretrainedConfig) -> tuple[PreTrainedModel, Sequence[Any]]:
    """The model without weights, and its blocks' caches after a few tokens."""
    cls = causal_class(config)
    config = copy.deepcopy(config)
    choose_experts(config, METHOD)
    states = DynamicCache(config=config)
    ids = torch.zeros((1, TOKENS), dtype=torch.long, device="meta")
    try:
        with torch.device("meta"), torch.inference_mode():
            model = cls(config).eval()
            model(input_ids=ids, use_cache=True, **cache_argument(model, states))
    except REFUSED as error:
        raise UnsupportedModel(
            f"{cls.__name__} cannot be built from this config ({first_line(error)})",
            check="check that the model's config.json is complete",
        ) from error
    return model, states.layers


def _block_cost(
    block: nn.Module, layer: Any, config: PretrainedConfig, *, format: Format, kv: Kv, fused: bool
) -> PartCost:
    weights = outputs = other = n_experts = expert_weights = expert_outputs = 0
    for path, module in block.named_modules():
        packed = is_packable(path, module)
        for name, parameter in module.named_parameters(recurse=False):
            if packed and name == "weight":
                weights += parameter.numel()
                outputs += parameter.shape[1 if is_turned(module) else 0]
            elif name in EXPERT_WEIGHTS and parameter.dim() == 3:
                n_experts = len(parameter)
                expert_weights += parameter[0].numel()
                turned = bool(getattr(module, "is_transposed", False))
                expert_outputs += parameter.shape[2 if turned else 1]
            else:
                other += parameter.numel()
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    heads, vectors, elements, dims = 0, 0, 0, 0
    if keys is not None and values is not None:
        vectors = keys.shape[1] + values.shape[1]
        elements = (keys.numel() + values.numel()) // TOKENS
        dims = keys.shape[-1] + values.shape[-1]
        heads = int(config.num_attention_heads)
    state = 0
    if isinstance(layer, LinearAttentionCacheLayerMixin):
        state = cache_layer_bytes(layer) - FLOAT * elements * TOKENS
    window = int(getattr(layer, "sliding_window", None) or 0)
    return PartCost(
        weights=weights,
        format=format,
        outputs=outputs,
        other=other,
        experts=n_experts,
        active=min(n_experts, _active(config)),
        expert_weights=expert_weights,
        expert_outputs=expert_outputs,
        kv_elements=elements,
        kv_vectors=vectors,
        kv=_kv_element(kv, fused=fused, bounded=window > 0),
        attention=2 * heads * dims,
        window=window,
        paged=fused,
        state=state,
    )


def _kv_element(kv: Kv, *, fused: bool, bounded: bool) -> KvElement:
    if fused:
        return "int8" if kv == "int8" else "bfloat16"
    return "int8" if kv == "int8" and not bounded else "float32"


def _active(config: PretrainedConfig) -> int:
    found = (getattr(config, name, None) for name in ACTIVE)
    return next((value for value in found if isinstance(value, int)), 1)


def _head_cost(model: PreTrainedModel, format: Format, fused: bool) -> PartCost:
    head, embedding = (
        cast(nn.Parameter, cast(nn.Module, found).weight)
        for found in (model.get_output_embeddings(), model.get_input_embeddings())
    )
    if fused:  # the embedding stays in its file
        return PartCost(head.numel(), head_format(format), outputs=len(head))
    resident = 0 if model.config.tie_word_embeddings else FLOAT * embedding.numel()
    return PartCost(head.numel(), "fp32", outputs=len(head), resident=resident)
