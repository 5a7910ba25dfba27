"""What the gateway costs: the same chats through its HTTP and through the library, over the same nodes.

In each of the dialects that it speaks; a round measures all of them and the library in turns, and what is
reported beside the speeds is the median of the rounds' ratios.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio

from shoal import config
from shoal.bench.models import described_model, measured_model
from shoal.bench.peers.programs import HOST, HasToken, ask, free_port, running_program
from shoal.bench.results import BenchReport, Contender, compared, describe_machine, in_turns
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.errors import DeadlineExceeded, ShoalError
from shoal.local.processes import LocalSwarm, enter_local_swarm, local_swarm, make_home
from shoal.progress import Progress

TOKENS = 64
"""Of each answer."""
READY_WITHIN_S = 30.0

Chat = Callable[[int], Awaitable["Decoded"]]
"""Has the chat of that number."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """When the tokens of a chat came, by one clock for all that run at once; those that end no character are
    not counted."""

    tokens: int
    first: float
    last: float


@dataclass(frozen=True, slots=True)
class ChatApi:
    """How a chat is asked for in one of the gateway's APIs, and which events of its answer carry a token."""

    path: str
    body: Callable[[str], dict[str, Any]]
    """Of a prompt, without what all have: ``model`` and ``stream``."""
    has_token: HasToken


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


CHAT_APIS: dict[str, ChatApi] = {
    "chat": ChatApi(
        "/v1/chat/completions",
        lambda prompt: {"messages": _messages(prompt), "max_tokens": TOKENS, "temperature": 0},
        lambda event: any(choice["delta"].get("content") for choice in event.get("choices", ())),
    ),
    "responses": ChatApi(
        "/v1/responses",
        lambda prompt: {"input": prompt, "max_output_tokens": TOKENS, "temperature": 0, "store": False},
        lambda event: event.get("type") == "response.output_text.delta",
    ),
    "messages": ChatApi(
        "/v1/messages",
        lambda prompt: {"messages": _messages(prompt), "max_tokens": TOKENS, "temperature": 0},
        lambda event: event.get("type") == "content_block_delta",
    ),
    "ollama": ChatApi(
        "/api/chat",
        lambda prompt: {
            "messages": _messages(prompt),
            "options": {"num_predict": TOKENS, "temperature": 0},
        },
        lambda event: bool(event.get("message", {}).get("content")),
    ),
}


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
            contenders.append(Contender(f"library/chat/b{count}", "tok/s", direct))
            for name, api in CHAT_APIS.items():
                through = partial(_together, count, partial(_http, port, model.name, api))
                contenders.append(Contender(f"gateway/{name}/b{count}", "tok/s", through))
        results = await in_turns(contenders, asked.rounds, progress)
    pairs = {
        result.name: {"library": f"library/chat/{result.name.rpartition('/')[2]}"}
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
                await _http(port, model, CHAT_APIS["chat"], 0)
            except ShoalError as error:
                refused = error
                await trio.sleep(0.5)
            else:
                return
    raise refused or DeadlineExceeded(f"the gateway was not ready within {READY_WITHIN_S:.0f} s")


async def _together(count: int, chat: Chat) -> float:
    """Tokens in a second over so many chats at once, from the first token of any to the last of all.

    Not the sum of their own rates: of chats that run one after the other, each has all of the speed.
    """
    chats: list[Decoded] = []

    async def one(number: int) -> None:
        chats.append(await chat(number))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    return together_rate(chats)


def together_rate(chats: Sequence[Decoded]) -> float:
    """Tokens in a second over chats that were had at once; what came first of all is not counted."""
    first, last = min(chat.first for chat in chats), max(chat.last for chat in chats)
    return (sum(chat.tokens for chat in chats) - 1) / (last - first)


async def _library(swarm: Swarm, model: str, number: int) -> Decoded:
    """One chat through the library."""
    times = [
        time.perf_counter()
        async for delta in swarm.generate(model, messages=_messages(_prompt(number)), max_tokens=TOKENS)
        if delta.text
    ]
    if len(times) < 2:
        raise ShoalError(f"{model} gave {len(times)} tokens")
    return Decoded(len(times), times[0], times[-1])


async def _http(port: int, model: str, api: ChatApi, number: int) -> Decoded:
    """The same through the gateway."""
    body = {"model": model, "stream": True, **api.body(_prompt(number))}
    found = await ask(port, api.path, body, api.has_token)
    return Decoded(found.tokens, found.began + found.first_s, found.began + found.total_s)


def _prompt(number: int) -> str:
    return f"Write a long story about {number + 2} fishes in a shoal."
