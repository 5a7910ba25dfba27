"""What the gateway costs: the same chats through its HTTP and through the library, over the same nodes."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from shoal import config
from shoal.bench.models import described_model, measured_model
from shoal.bench.peers.programs import HOST, ask, free_port, running_program
from shoal.bench.results import BenchReport, Contender, compared, describe_machine, in_turns
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.local.processes import LocalSwarm, enter_local_swarm, local_swarm, make_home
from shoal.progress import Progress

TOKENS = 64
"""Of each answer."""
READY_WITHIN_S = 30.0

Chat = Callable[[int], Awaitable[float]]
"""Has the chat of that number; gives its decode rate."""


@dataclass(frozen=True, slots=True)
class GatewayBench:
    """What is measured."""

    nodes: int
    sessions: int
    """Chats at once in the second measurement; the first has one."""
    rounds: int


async def measure_gateway(settings: Settings, asked: GatewayBench, progress: Progress) -> BenchReport:
    """Measure both ways in turns, in one format.

    Raises:
        ShoalError: the model cannot be had, or a node or the gateway did not come up.
    """
    settings, model = await trio.to_thread.run_sync(measured_model, settings, progress)
    progress(f"starting {asked.nodes} nodes", 0, 0)
    async with (
        local_swarm(settings, model.shape.n_blocks, asked.nodes) as local,
        enter_local_swarm(local) as swarm,
        own_process(local) as port,
    ):
        await _ready(port, model.name)
        contenders: list[Contender] = []
        for count in dict.fromkeys((1, asked.sessions)):
            direct = partial(_together, count, partial(_library, swarm, settings.model))
            through = partial(_together, count, partial(_http, port, model.name))
            contenders.append(Contender(f"library/chat/b{count}", "tok/s", direct))
            contenders.append(Contender(f"gateway/chat/b{count}", "tok/s", through))
        results = await in_turns(contenders, asked.rounds, progress)
    pairs = {
        result.name: {"library": result.name.replace("gateway", "library")}
        for result in results
        if result.name.startswith("gateway")
    }
    title = f"{model.name} through {asked.nodes} node processes: the gateway beside the library"
    machine = describe_machine(settings.threads)
    return BenchReport(title, machine, tuple(compared(results, pairs)), model=described_model(model))


@asynccontextmanager
async def own_process(local: LocalSwarm) -> AsyncGenerator[int]:
    """A gateway to a local swarm, in a process of its own, until the block ends; gives its port.

    Raises:
        ShoalError: it did not come up.
    """
    port = free_port()
    inside = replace(
        local.settings, gateway_host=HOST, gateway_port=port, swarm=local.membership.name, database=""
    )
    with TemporaryDirectory(prefix="shoal-") as folder:
        home = Path(folder, "gateway")
        make_home(home, local.settings.paths.models, local.membership)
        environ = {**config.to_environ(inside), "SHOAL_HOME": str(home)}
        command = [sys.executable, "-m", "shoal.cli", "gateway", "--json"]
        async with running_program(command, environ, port, Path(folder, "gateway.log")):
            yield port


async def _ready(port: int, model: str) -> None:
    """Wait until the gateway has heard of the nodes."""
    refused: ShoalError | None = None
    with trio.move_on_after(READY_WITHIN_S):
        while True:
            try:
                await _http(port, model, 0)
            except ShoalError as error:
                refused = error
                await trio.sleep(0.5)
            else:
                return
    raise refused or DeadlineExceeded(f"the gateway was not ready within {READY_WITHIN_S:.0f} s")


async def _together(count: int, chat: Chat) -> float:
    """Tokens in a second over so many chats at once: the sum of their decode rates."""
    rates: list[float] = []

    async def one(number: int) -> None:
        rates.append(await chat(number))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return sum(rates)


async def _library(swarm: Swarm, model: str, number: int) -> float:
    """Tokens in a second after the first of one chat; those that end no character are not counted."""
    times = [
        trio.current_time()
        async for delta in swarm.generate(model, messages=[_message(number)], max_tokens=TOKENS)
        if delta.text
    ]
    if len(times) < 2:
        raise ShoalError(f"{model} gave {len(times)} tokens")
    return (len(times) - 1) / (times[-1] - times[0])


async def _http(port: int, model: str, number: int) -> float:
    """The same through the gateway."""
    body = {"model": model, "messages": [_message(number)], "max_tokens": TOKENS, "temperature": 0}
    return (await ask(port, "/v1/chat/completions", body | {"stream": True})).decode_rate


def _message(number: int) -> dict[str, str]:
    return {"role": "user", "content": f"Write a long story about {number + 2} fishes in a shoal."}
