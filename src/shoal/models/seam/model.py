"""The class of a model for its config, and the arguments of its forward.

Relied on: ``MODEL_FOR_CAUSAL_LM_MAPPING`` gives the class, ``MODEL_MAPPING`` that of a model without a head,
whose ``pooler``, if it has one, may be ``None``; without weights it builds itself, on the meta
device too. ``base_model`` is the model without its head: its forward runs ``config.num_hidden_layers`` of the
blocks in its list, one after another, each through its ``__call__``, and takes token ids or embeddings,
positions and the cache by the names below.
"""

from __future__ import annotations

import inspect
from typing import cast

from torch import nn

from shoal.errors import UnsupportedModel
from shoal.models.seam.config import PretrainedConfig
from shoal.models.seam.contract import changed, expect_members, relied_on

with relied_on("classes of models"):
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING, PreTrainedModel

    expect_members(PreTrainedModel, "base_model", "get_input_embeddings", "get_output_embeddings")

__all__ = [
    "CACHE_NAMES",
    "PreTrainedModel",
    "accepted_inputs",
    "cache_argument",
    "causal_lm_class",
    "check_takes_cache",
    "headless_class",
]

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
"""What forwards call the cache: since transformers 5.24, before it, and Mamba's before it."""
SIMPLEST = "LlamaModel"
"""The family that any other is like: if it takes no cache, then all have changed."""


def causal_lm_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that ``AutoModelForCausalLM`` would take; ``None`` if such models generate no text."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    found = cast(object, MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
    return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)


def headless_class(config: PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that ``AutoModel`` would take, if there is one."""
    if type(config) not in MODEL_MAPPING:
        return None
    found = cast(object, MODEL_MAPPING[type(config)])
    return cast(type[PreTrainedModel], found[0] if isinstance(found, tuple) else found)


def accepted_inputs(module: nn.Module | type[nn.Module]) -> frozenset[str]:
    """The names of what a module's forward takes."""
    return frozenset(inspect.signature(module.forward).parameters)


def cache_argument(module: nn.Module, cache: object) -> dict[str, object]:
    """``cache`` by the name under which a module's forward takes it; nothing if it takes none."""
    return dict.fromkeys(accepted_inputs(module) & set(CACHE_NAMES), cache)


def check_takes_cache(model: PreTrainedModel) -> None:
    """Find out whether a model's forward has a place for a cache.

    Raises:
        UnsupportedModel: it has none, where other families have one.
        IncompatibleLibrary: no family has one under a name that we know.
    """
    if accepted_inputs(model.base_model) & set(CACHE_NAMES):
        return
    from transformers import LlamaModel  # noqa: PLC0415 — only where something is amiss

    found = accepted_inputs(LlamaModel)
    if not found & set(CACHE_NAMES):
        how = f"{SIMPLEST}.forward takes no {' or '.join(CACHE_NAMES)}, but {', '.join(sorted(found))}"
        raise changed("the cache of a forward", how)
    raise UnsupportedModel(
        f"{type(model).__name__} cannot be split into spans: its forward takes no cache",
        check="run it whole, with transformers, on one machine",
    )
