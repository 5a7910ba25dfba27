"""The items of a response's input: as they are stored and listed, and read again for the next turn."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from pydantic import TypeAdapter

from shoal.gateway.schema.common import ImagePart, TextPart
from shoal.gateway.schema.responses import InputCall, InputItem, InputMessage, InputReasoning, InputResult

AnyItem = InputMessage | InputCall | InputResult | InputReasoning
_ITEMS: TypeAdapter[list[AnyItem]] = TypeAdapter(list[InputItem])


def items_of(given: str | Sequence[AnyItem]) -> list[AnyItem]:
    """An input as items."""
    if isinstance(given, str):
        return [InputMessage.model_validate({"role": "user", "content": given})]
    return list(given)


def listed(item: AnyItem) -> dict[str, Any]:
    """An item of a conversation as ``/input_items`` shows it, with an id of its own where it came without."""
    match item:
        case InputMessage(role=role):
            fields: dict[str, Any] = {"role": role, "status": "completed", "content": _parts(item)}
            return _head(item, "msg_") | fields
        case InputCall():
            called = {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
            return _head(item, "fc_") | called | {"status": "completed"}
        case InputResult():
            output = (
                item.output if isinstance(item.output, str) else [_part(part, "user") for part in item.output]
            )
            return _head(item, "fco_") | {"call_id": item.call_id, "output": output, "status": "completed"}
        case InputReasoning():
            content = [part.model_dump() for part in item.content or ()]
            return _head(item, "rs_") | {"summary": [], "content": content, "status": "completed"}


def parsed(items: Sequence[dict[str, Any]]) -> list[AnyItem]:
    """Items as they were stored; an answer's own among them."""
    return _ITEMS.validate_python(list(items))


def _head(item: AnyItem, prefix: str) -> dict[str, Any]:
    return {"id": item.id or f"{prefix}{secrets.token_hex(12)}", "type": item.type}


def _parts(item: InputMessage) -> list[dict[str, Any]]:
    content = item.content or ""
    parts: Sequence[TextPart | ImagePart] = (
        [TextPart(type="text", text=content)] if isinstance(content, str) else content
    )
    return [_part(part, item.role) for part in parts]


def _part(part: TextPart | ImagePart, role: str) -> dict[str, Any]:
    if isinstance(part, ImagePart):
        return {"type": "input_image", "image_url": part.image_url, "detail": part.detail or "auto"}
    if part.type == "refusal":
        return {"type": "refusal", "refusal": part.text}
    if role == "assistant":
        return {"type": "output_text", "text": part.text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": part.text}
