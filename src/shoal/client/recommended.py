"""How to sample when a request leaves it open: as the model's makers recommend."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from shoal.client.sampling import Sampling
from shoal.errors import PromptTooLong, UsageError
from shoal.models.store.local_model import SamplingDefaults
from shoal.types import ModelShape


def sampling_for(defaults: SamplingDefaults, named: Mapping[str, Any], otherwise: float) -> Sampling:
    """The sampling of one answer.

    Who asks for a temperature of 0, or for none at all, wants the likeliest tokens, and nothing is added.

    Args:
        defaults: the model's own.
        named: fields of :class:`Sampling` that the request names; ``None`` leaves a field to the model.
        otherwise: the temperature where it is left to a model that recommends none.

    Raises:
        UsageError: a value that cannot be.
    """
    chosen = {name: value for name, value in named.items() if value is not None}
    if named.get("temperature", 0) == 0:
        return Sampling(**chosen)
    own: dict[str, Any] = {
        name: value for name, value in dataclasses.asdict(defaults).items() if value is not None
    }
    own.setdefault("temperature", otherwise)
    return Sampling(**(own | chosen))


def check_answer_options(max_tokens: int, named: Mapping[str, Any]) -> None:
    """Raises UsageError for an option that cannot be."""
    if max_tokens < 1:
        raise UsageError(f"max_tokens must be 1 or more, not {max_tokens}")
    try:
        Sampling(**{name: value for name, value in named.items() if value is not None})
    except TypeError as error:
        raise UsageError(f"an unknown option: {error}") from error


def answer_room(shape: ModelShape, prompt_tokens: int) -> int:
    """Tokens that an answer may have. Raises PromptTooLong: none."""
    room = shape.context - prompt_tokens
    if room < 1:
        raise PromptTooLong(
            f"the prompt has {prompt_tokens} tokens, and {shape.name} takes {shape.context} with the answer",
            check="shorten the prompt: it is never cut for you",
        )
    return room
