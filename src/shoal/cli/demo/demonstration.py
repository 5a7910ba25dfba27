"""What `shoal demo` does: a swarm on this machine, a first answer, then more for as long as one asks."""

from __future__ import annotations

import importlib
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import trio

from shoal.cli.ask import AnswerRequest, answer_fields, ask, route_table, say_speed, user
from shoal.cli.chat.reader import reader
from shoal.cli.gateway.process import gateway_on
from shoal.cli.output import emit, many, printable, say
from shoal.cli.progress import working
from shoal.config import Settings
from shoal.errors import PortInUse
from shoal.executor.kernels.built import kernels_built
from shoal.local.ending import how_to_end
from shoal.local.processes import LocalSwarm, enter_local_swarm, starting_swarm
from shoal.routing.formats import choose_format
from shoal.types import Digest, Format

if TYPE_CHECKING:
    from shoal.client.swarm import Swarm
    from shoal.models.store.local_model import LocalModel


HEAR_WITHIN_S = 30.0
ASK_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class Demo:
    """What was asked for."""

    prompt: str
    nodes: int
    max_tokens: int
    once: bool
    as_json: bool


@dataclass(frozen=True, slots=True)
class Booted:
    """Nodes that serve, and a client of them."""

    local: LocalSwarm
    swarm: Swarm
    format: Format


async def show(settings: Settings, demo: Demo) -> None:
    """Run the demo. It ends after the answer to ``--once``, with Ctrl-D at a terminal, or by a signal.

    Raises:
        ShoalError: the model cannot be had, or a node did not come up.
    """
    async with AsyncExitStack() as stack:
        booted = await _boot(stack, settings, demo.nodes)
        nodes, model = many(len(booted.local.nodes), "node"), printable(settings.model)
        say(f"{model} is ready: {nodes} on this machine, weights in {booted.format}")
        await _answer(booted, settings, demo, demo.prompt)
        if demo.once:
            return
        url = await _page(stack, booted, settings)
        typed = sys.stdin.isatty()
        say(f"ask more in a browser: {url}")
        say("or type a question here; Ctrl-D ends the demo" if typed else f"{how_to_end()} ends the demo")
        say("to use your own machines: shoal up on the first, then shoal invite")
        lines = reader(settings.paths.chat_history)
        while (text := await lines.read()) is not None:
            await _answer(booted, settings, demo, text)
        if not typed:  # the end of a pipe is no wish to end
            await trio.sleep_forever()


async def _page(stack: AsyncExitStack, booted: Booted, settings: Settings) -> str:
    """Open the gateway, at its usual port or else at a free one; gives its URL."""
    ours = booted.local.membership
    settings = replace(
        settings, swarm=ours.name, database=""
    )  # a demonstration touches nothing that is shared
    try:
        return await stack.enter_async_context(gateway_on(booted.swarm, settings, inside=ours))
    except PortInUse as error:
        say(f"note: {error.message}")
        other = replace(settings, gateway_port=0, ollama_port=0)
        return await stack.enter_async_context(gateway_on(booted.swarm, other, inside=ours))


async def _boot(stack: AsyncExitStack, settings: Settings, nodes: int) -> Booted:
    """Fetch the model, start the nodes and enter their swarm. All ends with ``stack``. Raises as ``show``."""
    with working(f"getting {settings.model}") as report:
        from shoal.models.store.store import ModelStore

        store = ModelStore(settings.paths.models)
        model = await trio.to_thread.run_sync(store.resolve, settings.model, report)
    format = choose_format(
        settings.format,
        model.dtype,
        kernels=kernels_built(),
        published=await trio.to_thread.run_sync(_holds_published, model),
        parallel=settings.parallel,
    ).format
    settings = replace(settings, format=format)
    with working(f"starting {many(nodes, 'node')}"):
        starting = await stack.enter_async_context(
            starting_swarm(settings, model.shape.n_blocks, nodes, cache=settings.paths.cache)
        )
        # While they load their blocks, we get ready to ask. Torch takes long to import: on a thread.
        await trio.to_thread.run_sync(importlib.import_module, "shoal.client.connect")
        await starting.listening()
        swarm = await stack.enter_async_context(enter_local_swarm(starting))
        await swarm.prepare(settings.model, format)
        local = await starting.serving()
        await _hear_of_all(swarm, model.digest)
    return Booted(local, swarm, format)


def _holds_published(model: LocalModel) -> bool:
    from shoal.executor.load import holds_published

    return holds_published(model)


async def _hear_of_all(swarm: Swarm, digest: Digest) -> None:
    """Ask the nodes what they have just announced, rather than wait for gossip, until all blocks are covered.

    On a machine that is very busy they may need a moment; the question that comes next says what is missing.
    """
    with trio.move_on_after(HEAR_WITHIN_S):
        while True:
            await swarm.member.join()
            covered = swarm.coverage(digest)
            if covered and all(covered):
                return
            with trio.move_on_after(ASK_AGAIN_S):
                await swarm.member.wait_changed()


async def _answer(booted: Booted, settings: Settings, demo: Demo, text: str) -> None:
    question = AnswerRequest(settings.model, user(text), max_tokens=demo.max_tokens, format=booted.format)
    if not demo.as_json:
        say(f"\n> {text}")
    answer = await ask(booted.swarm, question, stream=not demo.as_json)
    fields: dict[str, Any] = answer_fields(answer, question)
    if demo.as_json:
        emit(fields, True, lambda: "")
        return
    sys.stdout.flush()
    say("")
    emit(fields, False, lambda: route_table(fields))
    sys.stdout.flush()
    say_speed(fields)
    say("")
