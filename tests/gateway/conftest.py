"""A gateway before three nodes in memory, on a real socket of this machine."""

from __future__ import annotations

from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, replace
from functools import partial

import httpx
import pytest
import torch
import trio
from anyio.from_thread import start_blocking_portal

from shoal.errors import BadWeights
from shoal.gateway.app import Gateway, Options, open_gateway
from shoal.gateway.database.database import Database
from shoal.gateway.database.opening import database_at
from shoal.gateway.serve import serve
from shoal.swarm.membership import create
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.types import Span
from tests.one_process import KERNELS
from tests.postgres import fresh_schema
from tests.shared_codecs import share_codec

ELSEWHERE = create(
    "home", ["/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWNXj7WD9xwGQ7gcLCKLa3u3Tm1a5pDVtPQ3uoomATR7M6"]
)
"""A swarm whose node is on another machine."""
THIRDS = [Span(0, 2), Span(2, 3), Span(3, 6)]
MODULES = {"format": "fp32", "wire": "auto"}
"""Settings of nodes whose model runs on its own modules, as all do that are not of Llama's shape."""


@dataclass
class Served:
    """What a test talks to."""

    url: str
    gateway: Gateway
    swarm: MemorySwarm
    model: str
    http: httpx.AsyncClient

    async def chat(self, text="hello", **fields):
        """One chat completion, as JSON."""
        return await self.post("/v1/chat/completions", **{"messages": [user(text)]} | fields)

    async def post(self, path, headers=None, **fields):
        body = {"model": self.model, "temperature": 0, "max_tokens": 8} | fields
        return await self.http.post(path, json=body, headers=headers)

    async def idle(self):
        """Wait until no hop holds anything of any session, but those kept for a next turn."""
        with trio.fail_after(25):
            while any(  # noqa: ASYNC110
                node.server.sessions > self.gateway.prefixes.kept for node in self.swarm.nodes
            ):
                await trio.sleep(0.01)


def kept_in(folder) -> Database:
    """The database of a gateway whose home is this folder."""
    return database_at("", folder / "gateway.db")


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """A database of each kind, without tables."""
    url = fresh_schema(request.getfixturevalue("postgres")) if request.param == "postgres" else ""
    with closing(database_at(url, tmp_path / "gateway.db")) as opened:
        yield opened


def user(text):
    return {"role": "user", "content": text}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), "llama", max_position_embeddings=2048)


@asynccontextmanager
async def served(home, checkpoint, spans=THIRDS, host="127.0.0.1", ready=True, nodes=None, **options):
    """A gateway before a swarm in memory, of the settings KERNELS unless ``nodes`` has others."""
    async with (
        memory_swarm(home, checkpoint, spans, **KERNELS | (nodes or {})) as swarm,
        trio.open_nursery() as nursery,
    ):
        with suppress(BadWeights):  # some tests are about a model that has no tokenizer, or a bad one
            await share_codec(swarm.client, swarm.model)
        settings = {"model": str(checkpoint), "database": kept_in(home), "swarm": "home"}
        settings |= {"invite": lambda: ELSEWHERE, "health": list} | options
        async with open_gateway(swarm.client, Options(**settings)) as gateway:
            url = await nursery.start(partial(serve, gateway.app, host, 0))
            # Without TLS no authorities are needed, whose certificates take longer to read than all requests.
            async with httpx.AsyncClient(base_url=url, timeout=30, verify=False) as http:
                with trio.fail_after(10):
                    while ready and not gateway.ready:  # noqa: ASYNC110
                        await trio.sleep(0.01)
                yield Served(url, gateway, swarm, checkpoint.name, http)
        nursery.cancel_scope.cancel()


@pytest.fixture
async def gateway(tmp_path, checkpoint):
    async with served(tmp_path, checkpoint) as found:
        yield found


@pytest.fixture(scope="module")
def standing(tmp_path_factory, checkpoint):
    """A gateway in a thread of its own."""
    with (
        start_blocking_portal("trio") as portal,
        portal.wrap_async_context_manager(served(tmp_path_factory.mktemp("standing"), checkpoint)) as found,
    ):
        yield found


@pytest.fixture
async def shared(standing):
    """A gateway for all tests of a file that change nothing of it, and read what it answers alone."""
    async with httpx.AsyncClient(base_url=standing.url, timeout=30, verify=False) as http:
        yield replace(standing, http=http)
