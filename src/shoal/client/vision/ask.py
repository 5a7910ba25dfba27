"""From what is asked of a model, with pictures or without, to the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from shoal.client.answer import Answer
from shoal.client.vision.look import Looking, PictureFile
from shoal.client.vision.pictures import SeenPicture
from shoal.errors import UsageError
from shoal.models.store.local_model import LocalModel
from shoal.models.text.chat_templates import PICTURE_PART, ChatMessage, pictures_in
from shoal.models.text.codec import TextCodec
from shoal.models.text.prompt import ChatPrompt, encode_prompt


async def encode_into(
    answer: Answer,
    looking: Looking,
    local: LocalModel,
    codec: TextCodec | None,
    prompt: str | Sequence[int] | None,
    messages: Sequence[ChatMessage] | None,
    images: Sequence[PictureFile],
) -> tuple[list[int], list[SeenPicture]]:
    """Token ids of what was asked, which the answer is told of, too, and the pictures among them, looked at.

    Images are PNG or JPEG files, or their bytes. In ``messages`` they stand in their order where contents
    have ``{"type": "image"}``, or all before the words of the user's last; in a ``prompt`` where it has the
    model's own word for one.

    Raises:
        UsageError: the model takes no images, or the prompt shows more of them than there are, or fewer.
        ShoalError: as ``Looking.encoded``, ``Looking.look`` and ``encode_prompt``.
    """
    if codec is None or not (prompt is None or isinstance(prompt, str)):
        if images:
            raise UsageError(
                "images stand among words, and the prompt is given as token ids", check="give it as a text"
            )
        answer.prompt_token_ids = token_ids = [int(token) for token in prompt or ()]
        return token_ids, []
    given = answer.prompt if messages is None else ChatPrompt(with_images(messages, len(images)))
    prompted = await looking.encoded(
        local, codec, images, lambda shown: encode_prompt(codec, given, pictures=shown)
    )
    answer.prompt, answer.prompt_token_ids = prompted.made.text, prompted.made.token_ids
    if not images:
        return prompted.made.token_ids, []
    seen = await looking.look(local, prompted.pictures, prompted.placed)
    answer.tower_bytes = looking.tower_bytes(local)
    return prompted.made.token_ids, seen


def with_images(messages: Sequence[ChatMessage], images: int) -> Sequence[ChatMessage]:
    """Messages that show so many images: before the words of the user's last one, where none says where."""
    if not images or pictures_in(messages):
        return messages
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)
    if last is None:
        raise UsageError("images are given, and no message is the user's", check="give a user message")
    content: object = messages[last].get("content") or ""
    words = cast("list[Any]", content) if isinstance(content, list) else [{"type": "text", "text": content}]
    shown = dict(messages[last]) | {"content": [PICTURE_PART] * images + words}
    return [*messages[:last], shown, *messages[last + 1 :]]
