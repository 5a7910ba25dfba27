"""What `shoal demo` does: a swarm on this machine, a first answer, then more for as long as one asks."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import trio

from shoal.cli.ask import Question, answer_fields, ask, route_table, say_speed, user
from shoal.cli.gateways import opened
from shoal.cli.local import LocalSwarm, local_swarm
from shoal.cli.options import asked_format
from shoal.cli.output import emit, say
from shoal.cli.progress import working
from shoal.cli.talk.reader import reader
from shoal.config import Settings
from shoal.errors import PortInUse
from shoal.swarm.membership import to_code

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm
    from shoal.models.local import LocalModel


@dataclass(frozen=True, slots=True)
class Demo:
    """What was asked for."""

    prompt: str
    nodes: int
    max_tokens: int
    once: bool
    as_json: bool


async def show(settings: Settings, demo: Demo) -> None:
    """Run the demo.

    Raises:
        ShoalError: the model cannot be had, or a node did not come up.
    """
    async with AsyncExitStack() as stack:
        _, local, swarm = await booted(stack, settings, demo.nodes)
        for node in local.nodes:
            say(f"blocks {node['start']}:{node['end']} on {node['peer']} (process {node['pid']})")
        await _answer(swarm, settings, demo, demo.prompt)
        if demo.once:
            return
        url = await _page(stack, swarm, local, settings)
        say(f"the swarm stays up. Ask it in a browser at {url}")
        say("or here: ask on, or end with Ctrl-D")
        lines = reader(settings.paths.chat_history)
        while (text := await lines.read()) is not None:
            await _answer(swarm, settings, demo, text)


async def _page(stack: AsyncExitStack, swarm: Swarm, local: LocalSwarm, settings: Settings) -> str:
    """Open the gateway, at its usual port or else at a free one; gives its URL."""
    code = to_code(local.membership)
    inside = replace(settings, swarm=local.membership.name)
    try:
        return await stack.enter_async_context(opened(swarm, inside, invite_code=code))
    except PortInUse as error:
        say(f"note: {error.message}")
        return await stack.enter_async_context(
            opened(swarm, replace(inside, gateway_port=0), invite_code=code)
        )


async def booted(
    stack: AsyncExitStack, settings: Settings, nodes: int
) -> tuple[LocalModel, LocalSwarm, Swarm]:
    """Fetch the model, start the nodes and enter their swarm. All ends with ``stack``. Raises as ``show``."""
    with working(f"getting {settings.model}") as report:
        from shoal.models.store import ModelStore

        store = ModelStore(settings.paths.models)
        model = await trio.to_thread.run_sync(store.resolve, settings.model, report)
    with working(f"starting {nodes} nodes"):
        local = await stack.enter_async_context(local_swarm(settings, model.shape.n_blocks, nodes))
        swarm = await stack.enter_async_context(entered(local))
    return model, local, swarm


def entered(local: LocalSwarm) -> AbstractAsyncContextManager[Swarm]:
    """The local swarm, as a client."""
    from shoal.client.connect import open_swarm

    return open_swarm(replace(local.settings, bootstrap=local.membership.bootstrap), local.membership)


async def _answer(swarm: Swarm, settings: Settings, demo: Demo, text: str) -> None:
    question = Question(settings.model, user(text), max_tokens=demo.max_tokens, format=asked_format(settings))
    if not demo.as_json:
        say(f"> {text}")
    answer = await ask(swarm, question, stream=not demo.as_json)
    fields: dict[str, Any] = answer_fields(answer, question)
    if demo.as_json:
        emit(fields, True, lambda: "")
        return
    sys.stderr.flush()
    emit(fields, False, lambda: route_table(fields))
    say_speed(fields)
