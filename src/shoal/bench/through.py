"""The same model through a swarm of node processes on this machine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from statistics import median

import trio

from shoal.bench.one import DEPTH, STEPS
from shoal.bench.results import HopSplit, StepSplit
from shoal.client.sampling import Sampler, Sampling
from shoal.client.session import Session
from shoal.client.swarm import Swarm
from shoal.config import Settings
from shoal.local.processes import enter_local_swarm, local_swarm
from shoal.models.store.local_model import LocalModel
from shoal.progress import Progress
from shoal.types import Format
from shoal.wire.messages import HopTime


@dataclass(slots=True)
class Steps:
    """The steps that were measured with so many sessions: seconds at the client, and times by hop."""

    seconds: list[float] = field(default_factory=list[float])
    hops: list[tuple[HopTime, ...]] = field(default_factory=list[tuple[HopTime, ...]])


class SwarmDecoder:
    """A client of a local swarm. Made by :func:`through`."""

    def __init__(self, swarm: Swarm, model: LocalModel, name: str, format: Format, spans: list[str]) -> None:
        self._swarm = swarm
        self._name = name
        self._format: Format = format
        self._vocab = model.shape.vocab_size
        self._spans = spans
        self._steps: dict[int, Steps] = {}

    async def decode(self, sessions: int) -> float:
        """Tokens in a second over all of so many sessions, each decoding ``STEPS`` tokens greedily."""
        async with AsyncExitStack() as stack:
            opened = [await self._open(stack, DEPTH + STEPS + 1) for _ in range(sessions)]
            steps = self._steps.setdefault(sessions, Steps())
            tokens = [0] * sessions
            async with trio.open_nursery() as nursery:
                for place, session in enumerate(opened):
                    nursery.start_soon(self._prompt, session, place, tokens)
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                for session, token in zip(opened, tokens, strict=True):
                    nursery.start_soon(self._decode, session, token, steps)
            return sessions * STEPS / (trio.current_time() - began)

    async def first_token(self, prompt: Sequence[int]) -> float:
        """Seconds from the opening of a session to the first token after ``prompt``."""
        began = trio.current_time()
        async with AsyncExitStack() as stack:
            session = await self._open(stack, len(prompt) + 1)
            await session.advance(prompt, Sampler(Sampling()))
            return trio.current_time() - began

    async def requests(self, prompts: Sequence[Sequence[int]], tokens: int) -> float:
        """Tokens in a second over sessions that open at once and each answer with ``tokens`` tokens."""

        async def one(prompt: Sequence[int]) -> None:
            async with AsyncExitStack() as stack:
                session = await self._open(stack, len(prompt) + tokens)
                sampler = Sampler(Sampling())
                piece = prompt
                for count in range(tokens):
                    piece = [(await session.advance(piece, sampler, more=count + 1 < tokens)).token]

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for prompt in prompts:
                nursery.start_soon(one, prompt)
        return len(prompts) * tokens / (trio.current_time() - began)

    def split(self, sessions: int, ends_s: float) -> StepSplit:
        """Where the time of the steps went that were measured with so many sessions.

        The hops say what they computed and how long a step waited there. What is left after the client's ends
        is the network's, in equal parts for each of the ring's ways.

        Args:
            ends_s: what the ends take for so many sessions in this process.
        """
        steps = self._steps[sessions]
        by_hop = list(zip(*steps.hops, strict=True))
        compute = [median(time.compute_us for time in hop) / 1000 for hop in by_hop]
        waiting = [median(time.waiting_us for time in hop) / 1000 for hop in by_hop]
        rest = median(steps.seconds) * 1000 - sum(compute) - sum(waiting) - ends_s * 1000
        network = max(0.0, rest) / (len(by_hop) + 1)
        hops = [
            HopSplit(span, compute[place], network, waiting[place]) for place, span in enumerate(self._spans)
        ]
        return StepSplit(sessions, (*hops, HopSplit("client", ends_s * 1000, network, 0.0)))

    async def _open(self, stack: AsyncExitStack, tokens: int) -> Session:
        opening = self._swarm.session(self._name, tokens=tokens, format=self._format)
        return await stack.enter_async_context(opening)

    async def _prompt(self, session: Session, place: int, tokens: list[int]) -> None:
        prompt = [(7 * place + i) % self._vocab for i in range(DEPTH)]
        tokens[place] = (await session.advance(prompt, Sampler(Sampling()))).token

    async def _decode(self, session: Session, token: int, steps: Steps) -> None:
        sampler = Sampler(Sampling())
        for count in range(STEPS):
            began = trio.current_time()
            advanced = await session.advance([token], sampler, more=count + 1 < STEPS)
            steps.seconds.append(trio.current_time() - began)
            steps.hops.append(advanced.times)
            token = advanced.token


@asynccontextmanager
async def through(
    settings: Settings, model: LocalModel, format: Format, nodes: int, progress: Progress
) -> AsyncGenerator[SwarmDecoder]:
    """Start the nodes, each with ``settings.threads`` threads; end them with the block.

    Raises:
        ShoalError: a node did not come up.
    """
    settings = replace(settings, format=format)
    progress(f"starting {nodes} nodes in {format}", 0, 0)
    async with (
        local_swarm(settings, model.shape.n_blocks, nodes) as local,
        enter_local_swarm(local) as swarm,
    ):
        spans = [f"{node['start']}:{node['end']}" for node in local.nodes]
        yield SwarmDecoder(swarm, model, settings.model, format, spans)
