"""Images in requests: where each stands, what it holds, and the conversation without them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from shoal.gateway.errors import BadRequest
from shoal.gateway.schema.common import ImagePart, TextPart
from shoal.models.text.chat_templates import PICTURE_PART

SCHEME = "data:"
KINDS = ("image/png", "image/jpeg", "image/jpg")


@dataclass(frozen=True, slots=True)
class GivenImage:
    """An image as a request has it. In messages for a template it stands among the parts of a content."""

    where: str
    """The field of the request that holds it."""
    data: str
    """In base64; empty where it is elsewhere."""
    elsewhere: str = ""
    """How it is named there."""
    kind: str = KINDS[0]
    """What it is said to be."""

    @classmethod
    def of_url(cls, where: str, url: str) -> GivenImage:
        """What a ``data:`` URL holds; any other names an image elsewhere."""
        head, comma, data = url.partition(",")
        kind, _, encoding = head.removeprefix(SCHEME).partition(";")
        if not head.startswith(SCHEME) or not comma or encoding.rpartition(";")[2] != "base64":
            return cls(where, "", url[:80] or "nothing")
        return cls(where, data, kind=kind.lower())

    def decoded(self) -> bytes:
        """Its bytes.

        Raises:
            BadRequest: it is elsewhere, of another kind, or not in base64.
        """
        if self.elsewhere:
            raise BadRequest(
                f"{self.where} is {self.elsewhere!r}: no image is fetched from elsewhere",
                check="send the image itself, as data:image/png;base64,…",
                param=self.where,
            )
        if self.kind not in KINDS:
            raise BadRequest(
                f"{self.where} is {self.kind[:40]!r}, which is not read here",
                check="send PNG or JPEG",
                param=self.where,
            )
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadRequest(f"{self.where} is not base64 ({error})", param=self.where) from error


def content_for_template(content: str | Sequence[TextPart | ImagePart] | None, where: str) -> Any:
    """A content as chat templates read it: its words, or parts where it shows images."""
    if content is None or isinstance(content, str):
        return content or ""
    if not any(isinstance(part, ImagePart) for part in content):
        return "".join(part.text for part in content if isinstance(part, TextPart))
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else GivenImage.of_url(f"{where}.{place}", part.image_url)
        for place, part in enumerate(content)
    ]


def shown_first(text: str, images: Iterable[GivenImage]) -> Any:
    """A content that shows images before its words, as Ollama has them."""
    given = list(images)
    return [*given, {"type": "text", "text": text}] if given else text


def images_in(messages: Sequence[Mapping[str, Any]]) -> list[GivenImage]:
    """The images of a conversation, in their order."""
    return [part for parts in _lists(messages) for part in parts if isinstance(part, GivenImage)]


def without_images(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as templates read it: each image is a part that only shows that there is one."""
    return [
        dict(message)
        | (
            {"content": [PICTURE_PART if isinstance(part, GivenImage) else part for part in content]}
            if isinstance(content := message.get("content"), list)
            else {}
        )
        for message in messages
    ]


def together(one: Any, other: Any) -> Any:
    """Two contents, one behind the other, with an empty line between their words."""
    if not one or not other:
        return one or other
    if isinstance(one, str) and isinstance(other, str):
        return f"{one}\n\n{other}"
    between = {"type": "text", "text": "\n\n"}
    return [*_parts(one), between, *_parts(other)]


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _lists(messages: Sequence[Mapping[str, Any]]) -> Iterable[list[Any]]:
    for message in messages:
        if isinstance(content := message.get("content"), list):
            yield cast("list[Any]", content)
