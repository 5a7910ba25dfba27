"""From what a caller gives to the token ids that a model goes on from: one way, for every caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shoal.models.text.chat_templates import ChatMessage, EncodedPrompt
from shoal.models.text.codec import TextCodec
from shoal.models.text.pictures import ShownPictures


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """Messages for the model's chat template."""

    messages: Sequence[ChatMessage]
    """``[{"role": "user", "content": "…"}, …]``; a content may be a list of parts: of text, and
    ``{"type": "image"}`` where it shows a picture."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What the template may look at: ``tools``, ``documents``, ``enable_thinking``."""


def encode_prompt(
    codec: TextCodec, given: str | ChatPrompt, *, special: bool = True, pictures: ShownPictures | None = None
) -> EncodedPrompt:
    """The prompt that a text is, or that a conversation becomes by the chat template. Blocks: not on a loop.

    Args:
        special: put what the model wants at the beginning of a text before it; a template sees to it itself.
        pictures: what the prompt shows. A text has the model's own word where it shows one.

    Raises:
        UsageError: the text is too long, or not Unicode; the template refuses messages or leaves some out.
        BadWeights: the template does not end in time, or the tokenizer fails.
        Busy: too many others wait for them.
    """
    if isinstance(given, str) and pictures is not None:
        return codec.shown(given, pictures)
    if isinstance(given, str):
        return EncodedPrompt(given, codec.encode(given, special=special), given)
    return codec.prompt(given.messages, given.options, pictures)
