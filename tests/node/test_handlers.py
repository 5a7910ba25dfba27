"""Kinds of messages find their handlers, and what nobody handles breaks the protocol."""

from __future__ import annotations

import pytest

from shoal.errors import LocalProtocolError, RemoteProtocolError
from shoal.node.handlers import Handlers
from shoal.wire.messages import Close, Locate, Message

SESSION = b"s" * 16


class Recorder:
    """A handler that remembers what it was given."""

    def __init__(self) -> None:
        self.got: list[tuple[Message, bytes]] = []

    async def handle(self, channel: object, message: Message, payload: bytes) -> None:
        self.got.append((message, payload))


async def test_a_registered_kind_goes_to_its_handler_and_to_no_other() -> None:
    handlers, close, locate = Handlers(), Recorder(), Recorder()
    handlers.register(Close, close.handle)
    handlers.register(Locate, locate.handle)
    await handlers.handle(None, Close(SESSION), b"payload")  # type: ignore[arg-type]
    assert close.got == [(Close(SESSION), b"payload")]
    assert locate.got == []


async def test_a_kind_that_nobody_has_registered_is_a_protocol_error_that_names_it() -> None:
    handlers = Handlers()
    handlers.register(Close, Recorder().handle)
    with pytest.raises(RemoteProtocolError, match="a Locate where none is expected"):
        await handlers.handle(None, Locate(SESSION), b"")  # type: ignore[arg-type]


def test_a_kind_has_one_handler() -> None:
    handlers = Handlers()
    handlers.register(Close, Recorder().handle)
    with pytest.raises(LocalProtocolError, match="Close"):
        handlers.register(Close, Recorder().handle)
