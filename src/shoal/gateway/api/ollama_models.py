"""The models in the words of Ollama's API: ``/api/tags``, ``/api/ps`` and ``/api/show``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from shoal.errors import BadWeights, UsageError
from shoal.gateway.models import Servable
from shoal.models.checkpoint.checkpoint import CONFIG
from shoal.models.checkpoint.json_file import read_object
from shoal.models.embedding.settings import embedding_settings
from shoal.models.store.local_model import LocalModel

VERSION = "0.12.11"
"""The version of Ollama whose API this is: clients refuse servers that are too old for them."""
LATEST = ":latest"
UNKNOWN_TIME = "1970-01-01T00:00:00Z"
"""When a model came into the world is not known, and the epoch says so."""
NEVER = "9999-12-31T23:59:59Z"
THINKING = "thinking"
VISION = "vision"
EMBEDDING = "embedding"
_THINKS = ("thinking", "<think>", "reasoning_effort")
"""What a chat template speaks of that can be asked for reasoning."""
_PARAMETERS = {"repetition_penalty": "repeat_penalty"}


def known_name(name: str) -> str:
    """The model's name without the tag that Ollama's clients add to one without a tag."""
    return name.removesuffix(LATEST)


def capabilities(model: Servable) -> list[str]:
    """What can be asked of a model. Every model with a tokenizer can be told of tools."""
    if model.hears:
        return []  # Ollama's API has no place for recordings
    if model.codec is None:
        return ["completion"]
    thinks = any(word in model.codec.template for word in _THINKS)
    return ["completion", "tools", *([THINKING] if thinks else [])]


def all_capabilities(model: Servable, *, sees: bool) -> list[str]:
    """The same, and whether it takes images and gives embeddings. Blocks. Raises as :func:`family`."""
    found = capabilities(model) + ([VISION] if sees else [])
    try:
        embedding_settings(model.local)
    except (UsageError, BadWeights):  # it gives none, or in a way that is not supported
        return found
    return (found if model.generates else []) + [EMBEDDING]


def tags(models: Sequence[LocalModel]) -> dict[str, Any]:
    """The models that can be asked for. Blocks: reads their configs. Raises as :func:`family`."""
    return {"models": [_card(local) | {"modified_at": UNKNOWN_TIME} for local in models]}


def running(models: Sequence[LocalModel]) -> dict[str, Any]:
    """Those that can answer now; nodes keep them for as long as they serve. Raises as :func:`tags`."""
    more = {"expires_at": NEVER, "size_vram": 0}
    return {"models": [_card(local) | more | {"context_length": local.shape.context} for local in models]}


def show(model: Servable, *, sees: bool) -> dict[str, Any]:
    """What is known of one. Blocks. Raises as :func:`family`.

    Args:
        sees: whether it takes images.
    """
    local, kind = model.local, family(model.local)
    named = {name: value for name, value in dataclasses.asdict(local.sampling).items() if value is not None}
    return {
        "parameters": "\n".join(f"{_PARAMETERS.get(name, name)} {value}" for name, value in named.items()),
        "template": model.codec.template if model.codec else "",
        "details": _details(local),
        "model_info": {
            "general.architecture": kind,
            "general.basename": local.name,
            f"{kind}.block_count": local.shape.n_blocks,
            f"{kind}.context_length": local.shape.context,
            f"{kind}.embedding_length": local.shape.hidden_size,
            f"{kind}.vocab_size": local.shape.vocab_size,
        },
        "capabilities": all_capabilities(model, sees=sees),
        "modified_at": UNKNOWN_TIME,
    }


def family(local: LocalModel) -> str:
    """The family of a model as its config names it, for example ``llama``.

    Raises:
        BadWeights: the config cannot be read any more.
    """
    return str(read_object(local.path / "config.json", CONFIG).get("model_type", ""))


def _card(local: LocalModel) -> dict[str, Any]:
    return {
        "name": local.name,
        "model": local.name,
        "size": local.size,
        "digest": local.digest.removeprefix("sha256:"),
        "details": _details(local),
    }


def _details(local: LocalModel) -> dict[str, Any]:
    kind = family(local)
    return {
        "parent_model": "",
        "format": "gguf" if any(local.path.glob("*.gguf")) else "safetensors",
        "family": kind,
        "families": [kind],
        "parameter_size": "",
        "quantization_level": local.dtype,
    }
