"""What samples are made of: prompts from a file or from a caller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from shoal.client.recommended import answer_room
from shoal.errors import ShoalError, UsageError
from shoal.models.text.codec import TextCodec
from shoal.models.text.conversation import read_conversation
from shoal.models.text.prompt import encode_prompt
from shoal.models.untrusted.json_lines import line_object, numbered_lines
from shoal.types import ModelShape

MAX_PROMPTS = 1_000_000
MAX_ID = 512
RolloutPrompts = Path | Sequence[Mapping[str, Any]]
PromptSkipped = Callable[[int, str], None]
"""Told of a prompt that is left out: its line, and why."""


@dataclass(frozen=True, slots=True)
class RolloutPrompt:
    """What one group of samples goes on from."""

    line: int
    """Where it is in its file, or among those that were given, from 1."""
    token_ids: tuple[int, ...]
    id: str | None = None
    """Its name, if it has one: each of its samples has it too."""


def read_prompts(
    given: RolloutPrompts,
    codec: TextCodec | None,
    shape: ModelShape,
    *,
    skipped: PromptSkipped | None = None,
) -> list[RolloutPrompt]:
    """The prompts of a file, or of a caller.

    Each is ``{"prompt": "…"}``, ``{"messages": [{"role": …, "content": …}, …]}`` with ``tools`` and
    ``chat_template_kwargs`` as over HTTP, or ``{"token_ids": […]}``; with an ``id`` if it is to have one.
    Blocks: not on a loop.

    Args:
        codec: the model's tokenizer; without one, only token ids can be read.
        skipped: told of prompts that are left out; ``None`` refuses all for the first that cannot be.

    Raises:
        UsageError: there are none, or one that cannot be; names its line.
    """
    where = f"{given}, line" if isinstance(given, Path) else "prompt"
    found: list[RolloutPrompt] = []
    for number, one in _numbered(given):
        if len(found) == MAX_PROMPTS:
            raise UsageError(f"more than {MAX_PROMPTS:,} prompts", check="give them in several files")
        try:
            found.append(_prompt(line_object(one) if isinstance(one, bytes) else one, number, codec, shape))
        except ShoalError as error:
            if skipped is None:
                raise UsageError(
                    f"{where} {number}: {error.message}",
                    check=error.check or "correct the line, or leave such lines out with --skip-bad",
                ) from error
            skipped(number, error.message)
    if not found:
        raise UsageError("there is no prompt", check='write {"prompt": "…"} on each line')
    return found


def _numbered(given: RolloutPrompts) -> Iterator[tuple[int, bytes | Mapping[str, Any]]]:
    yield from numbered_lines(given) if isinstance(given, Path) else enumerate(given, 1)


def _prompt(
    line: Mapping[str, Any], number: int, codec: TextCodec | None, shape: ModelShape
) -> RolloutPrompt:
    """Raises UsageError, PromptTooLong: it cannot be one."""
    id = line.get("id")
    if not (id is None or (isinstance(id, str) and 0 < len(id) <= MAX_ID)):
        raise UsageError(f"its id is no string of 1 to {MAX_ID} characters")
    match line:
        case {"token_ids": list(tokens)}:
            token_ids = _checked(cast("list[Any]", tokens), shape)
        case {"prompt": str(text)}:
            token_ids = encode_prompt(_needed(codec, shape), text).token_ids
        case {"messages": list()}:
            codec = _needed(codec, shape)
            token_ids = encode_prompt(codec, read_conversation(line, codec)).token_ids
        case _:
            raise UsageError(
                "it has neither prompt nor messages nor token_ids",
                check='write {"prompt": "…"} on each line, or {"messages": [{"role": "user", …}, …]}',
            )
    if not token_ids:
        raise UsageError("it is empty")
    answer_room(shape, len(token_ids))
    return RolloutPrompt(number, tuple(token_ids), id)


def _checked(tokens: list[Any], shape: ModelShape) -> list[int]:
    for token in tokens:
        if type(token) is not int or not 0 <= token < shape.vocab_size:
            raise UsageError(f"{token!r:.40} is no token: the vocabulary has {shape.vocab_size}")
    return tokens


def _needed(codec: TextCodec | None, shape: ModelShape) -> TextCodec:
    if codec is None:
        raise UsageError(f"{shape.name} has no tokenizer", check="give token_ids")
    return codec
