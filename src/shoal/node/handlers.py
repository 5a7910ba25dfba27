"""Which kind of message goes to which function. What is served beside sessions registers its kinds here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from shoal.errors import LocalProtocolError, RemoteProtocolError
from shoal.net.channel import Channel
from shoal.wire.messages import Message

_KindT = TypeVar("_KindT", bound=Message)

MessageHandler = Callable[[Channel, _KindT, bytes], Awaitable[None]]
"""Takes a message, its channel and its payload. All that a channel brings waits for it: what takes long goes
into a task of its own. A ``RemoteProtocolError`` that it raises closes the channel."""


class Handlers:
    """A table from kinds of messages to what handles them."""

    def __init__(self) -> None:
        self._handlers: dict[type[Message], MessageHandler[Any]] = {}

    def register(self, kind: type[_KindT], handler: MessageHandler[_KindT]) -> None:
        """Have each message of ``kind`` given to ``handler``.

        Raises:
            LocalProtocolError: the kind has a handler already.
        """
        if kind in self._handlers:
            raise LocalProtocolError(f"a second handler for {kind.__name__}")
        self._handlers[kind] = handler

    async def handle(self, channel: Channel, message: Message, payload: bytes) -> None:
        """Give a message to its handler.

        Raises:
            RemoteProtocolError: there is none for its kind.
        """
        handler = self._handlers.get(type(message))
        if handler is None:
            raise RemoteProtocolError(f"a {type(message).__name__} where none is expected")
        await handler(channel, message, payload)
