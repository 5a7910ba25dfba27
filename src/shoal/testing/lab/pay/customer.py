"""A client in a process of its own, which pays from a wallet: what it is asked comes line by line.

Run as ``python -m shoal.testing.lab.pay.customer``, with what :class:`CustomerOrder` says as its argument.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace

import msgspec
import trio
from msgspec import Struct

from shoal import config, process_environ
from shoal.client.connect import open_swarm
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.errors import ShoalError
from shoal.swarm import membership
from shoal.testing.lab.asking import LabRequest, ask, listen
from shoal.types import Format

FREE = "free"
"""The name of the swarm whose nodes ask nothing; in all others it pays."""
HEARD_WITHIN_S = 60.0
MAX_LINE = 1 << 20


class CustomerOrder(Struct, frozen=True):
    """Which swarms it is in: names, and where their nodes are."""

    swarms: dict[str, tuple[str, ...]]
    nodes: int
    """So many of each it waits for before it asks."""


class Question(Struct, frozen=True):
    """One answer that it is to ask for."""

    number: int
    swarm: str
    model: str
    prompt: str | list[int]
    max_tokens: int
    format: Format | None = None


class CustomerAnswer(Struct, frozen=True, kw_only=True):
    """What came of it."""

    event: str = "answer"
    number: int
    tokens: list[int] = []
    seconds: float = 0.0
    failure: str = ""
    """The error it ended with; empty for an answer."""


async def _live(settings: Settings, order: CustomerOrder) -> None:
    async with AsyncExitStack() as stack:
        clients: dict[str, Swarm] = {}
        for name, bootstrap in order.swarms.items():
            own = replace(settings, swarm=name, bootstrap=bootstrap)
            if name == FREE:
                own = replace(own, max_price="", pay_budget="", pay_password_file="")
            member_of = membership.load(settings.paths.swarms, name)
            clients[name] = await stack.enter_async_context(open_swarm(own, member_of))
        for client in clients.values():
            await _heard(client, order.nodes)
        _say(b'{"event": "ready"}')
        async with trio.open_nursery() as nursery:
            async for line in _lines():
                question = msgspec.json.decode(line, type=Question)
                nursery.start_soon(_answer, clients[question.swarm], question)
            nursery.cancel_scope.cancel()


async def _heard(client: Swarm, nodes: int) -> None:
    with trio.move_on_after(HEARD_WITHIN_S):
        while sum(one.served is not None for one in client.announcements()) < nodes:
            await client.member.wait_changed()
        return
    raise ShoalError(f"of {nodes} nodes not all were heard of within {HEARD_WITHIN_S:.0f} s")


async def _answer(client: Swarm, question: Question) -> None:
    request = LabRequest(question.model, question.prompt, question.max_tokens, question.format)
    asked = ask(client, request, 0)
    await listen(asked)
    error = asked.error
    said = CustomerAnswer(
        number=question.number,
        tokens=asked.token_ids,
        seconds=(asked.ended or asked.began) - asked.began,
        failure="" if error is None else f"{type(error).__name__}: {error}",
    )
    _say(msgspec.json.encode(said))


async def _lines() -> AsyncGenerator[bytes]:
    """What comes at stdin, until it ends."""
    buffer = b""
    async with trio.lowlevel.FdStream(0) as stream:
        async for piece in stream:
            *lines, buffer = (buffer + piece).split(b"\n")
            for line in lines:
                yield line
            if len(buffer) > MAX_LINE:
                raise ShoalError("a line is too long")


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


def main(argv: Sequence[str]) -> None:
    """Be a customer until stdin ends."""
    process_environ.share_cores()
    trio.run(_live, config.load({}), msgspec.json.decode(argv[0], type=CustomerOrder))


if __name__ == "__main__":
    main(sys.argv[1:])
