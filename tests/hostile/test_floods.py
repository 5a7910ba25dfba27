"""Ten thousand identities that announce absurd things (docs/hostile.md 27): who is honest notices nothing.

What costs time is counted in processor time of the loop's thread: a machine that is busy with something else
fails no test here.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import trio

from shoal.gateway.app import Gateway, Options, open_gateway
from shoal.gateway.database.opening import database_at
from shoal.gateway.page.view import PEERS_SHOWN
from shoal.gateway.serve import serve
from shoal.net.identity import Identity
from shoal.swarm.announcement import Announcement, Served, seal
from shoal.swarm.anti_entropy import MAX_PEERS, DirectoryDifference, encode
from shoal.swarm.membership import create
from shoal.swarm.taking_part.comparison import CHECKED_AT_ONCE, CHECKED_PER_S, DIRECTORY_PROTOCOL
from shoal.testing.memory import MemoryNetwork
from shoal.testing.swarm import MemorySwarm, memory_swarm
from shoal.types import Span

pytestmark = [pytest.mark.swarm, pytest.mark.alone]

IDENTITIES = 10_000
SPANS = [Span(0, 2), Span(2, 3), Span(3, 6)]
LONGEST_STEP_S = 0.1
"""Of one task before others have their turn; a token's way takes a few."""


def shapes(honest: Served, number: int) -> Served:
    """What one of the identities announces: every shape in turn."""
    other = f"sha256:{hashlib.sha256(b'%d' % number).hexdigest()}"
    lie = msgspec.structs.replace
    match number % 5:
        case 0:
            return lie(honest, model="<img src=x>\x1b[31m", digest=other, n_blocks=16384, start=0, end=16384)
        case 1:
            return lie(honest, model="\x1b" * 200, digest=other, n_blocks=1, start=0, end=1)
        case 2:
            return lie(honest, n_blocks=16384, start=number % 16000, end=16384)
        case 3:
            start = number % 16383
            model = "\U0001f41f" * 200
            digest = "sha256:" + "d" * 64
            return lie(honest, model=model, digest=digest, n_blocks=16384, start=start, end=start + 1)
        case _:
            return lie(honest, model=f"m{number}", digest=other, n_blocks=16384, start=8000, end=8001)


def addresses(number: int) -> tuple[str, ...]:
    if number % 7 == 0:
        return ("/ip4/999.1.1.1/tcp/99999", "nonsense", "/" * 256, "\x1b" * 256) * 2
    return (f"/ip4/10.{number >> 8 & 255}.{number & 255}.1/tcp/4001",)


@dataclass
class Flooded:
    """A gateway whose swarm is flooded."""

    swarm: MemorySwarm
    gateway: Gateway
    http: httpx.AsyncClient
    evil: MemoryNetwork
    model: str
    asked: int = 0

    async def ask(self, tokens: int = 24) -> str:
        body = {"model": self.model, "prompt": "hello", "max_tokens": tokens, "temperature": 0}
        answer = await self.http.post("/v1/completions", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["choices"][0]["text"]


def words(honest: Served, wall: float) -> list[bytes]:
    """Ten thousand signed announcements. An attacker makes them in seconds."""
    made: list[bytes] = []
    for number in range(IDENTITIES):
        identity = Identity.ephemeral()
        said = Announcement(
            identity.peer,
            number,
            wall,
            wall + 3000,
            addresses(number),
            (),
            shapes(honest, number),
            "x\x1b[2J",
        )
        made.append(seal(said, identity.sign))
    return made


class Steps(trio.abc.Instrument):
    """The longest that one task kept the loop to itself."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self.who = ""
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took_s = time.thread_time() - self._began
        if took_s > self.longest_s:
            self.longest_s, self.who = took_s, task.name


@pytest.fixture
async def flooded(tmp_path: Path, checkpoint: Path, nursery: trio.Nursery) -> AsyncGenerator[Flooded]:
    """Everybody asks the attacker for its directory, again and again, and is told of ten thousand peers."""
    elsewhere = create(
        "home", ["/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWNXj7WD9xwGQ7gcLCKLa3u3Tm1a5pDVtPQ3uoomATR7M6"]
    )
    settings = {"format": "int8", "announce_s": 1.0, "expiry_s": 30.0}
    async with memory_swarm(tmp_path / "home", checkpoint, SPANS, **settings) as swarm:
        options = Options(
            str(checkpoint), database_at("", tmp_path / "gateway.db"), "home", lambda: elsewhere, list
        )
        async with open_gateway(swarm.client, options) as gateway:
            url = await nursery.start(serve, gateway.app, "127.0.0.1", 0)
            async with httpx.AsyncClient(base_url=url, timeout=30) as http:
                found = Flooded(swarm, gateway, http, swarm.world.network(), checkpoint.name)
                yield found
        nursery.cancel_scope.cancel()


async def flood(flooded: Flooded) -> None:
    """Have the attacker known to everybody, and asked by the gateway without a rest."""
    client = flooded.swarm.client.member
    made = await trio.to_thread.run_sync(words, flooded.swarm.nodes[0].served(), client.clock.wall())

    async def tell(*_: Any) -> bytes:
        at = flooded.asked * 1500 % len(made)
        flooded.asked += 1
        return encode(DirectoryDifference(made[at : at + 1500], {}, client.clock.own))

    flooded.evil.answer(DIRECTORY_PROTOCOL, tell)

    async def ask_on() -> None:
        while True:
            await client.pull(flooded.evil.peer)
            await trio.sleep(0.2)

    flooded.swarm.nursery.start_soon(ask_on)


async def test_27_ten_thousand_identities_cost_honest_clients_nothing(flooded: Flooded) -> None:
    with trio.fail_after(180):
        while not flooded.gateway.ready:  # noqa: ASYNC110
            await trio.sleep(0.05)
        right = await flooded.ask()
        began = trio.current_time()
        await flood(flooded)
        member = flooded.swarm.client.member
        directory = member.directory
        while member.size.peers < 1000:  # noqa: ASYNC110
            await trio.sleep(0.05)
        gc.collect()
        gc.freeze()  # to look through all the tests that were collected takes most of a second
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        heard, page = 0, b""
        async with flooded.http.stream("GET", "/api/events") as events, trio.open_nursery() as nursery:

            async def read_page() -> None:
                nonlocal heard, page
                async for piece in events.aiter_bytes():
                    heard += len(piece)
                    page = (page + piece)[-1_000_000:]

            nursery.start_soon(read_page)
            listening = trio.current_time()
            turns = 0
            while turns < 3 or flooded.asked <= 10:  # the attacker, by the gateway
                turns += 1
                assert await flooded.ask() == right
                assert (await flooded.http.get("/health")).json() == {
                    "status": "ok",
                    "models": [flooded.model],
                }
                metrics = await flooded.http.get("/metrics")
                view = await flooded.http.get("/api/swarm")
                await trio.sleep(0.5)
            a_second = heard / (trio.current_time() - listening)
            nursery.cancel_scope.cancel()
        trio.lowlevel.remove_instrument(steps)
        gc.unfreeze()
        # What came in is what the rates allow, however much was said.
        elapsed = trio.current_time() - began
        assert len(directory) <= CHECKED_AT_ONCE + CHECKED_PER_S * (elapsed + 1) + 4
        assert a_second < 1_000_000
        assert len(view.content) < 1_000_000
        assert len(metrics.content) < 50_000
        assert f'shoal_blocks_missing{{model_name="{flooded.model}"}} 0.0' in metrics.text
        assert metrics.text.count("model_name=") < 200  # those of the requests alone
        assert steps.longest_s < LONGEST_STEP_S, (steps.longest_s, steps.who)
        check_view(json.loads(view.content), flooded)


def check_view(view: dict[str, Any], flooded: Flooded) -> None:
    """The honest are shown whatever else there is, and first."""
    honest = {network.peer for network in flooded.swarm.networks}
    assert honest <= {peer["peer"] for peer in view["peers"]}
    assert view["models"][0]["id"] == flooded.model
    assert view["models"][0]["runs"] == [[0, 6, 1]]
    assert view["models"][0]["missing"] == []
    assert len(view["models"]) <= 16 < view["models_in_all"]
    assert len(view["peers"]) <= min(PEERS_SHOWN, view["peers_in_all"])
    assert view["peers_in_all"] < IDENTITIES / 20  # a part of them is kept: the swarm is a large one now
    assert all(0 <= peer["expires_in_s"] <= 3600 for peer in view["peers"])


async def test_27_a_newcomer_is_heard_of_in_seconds_through_its_neighbours_though_the_directory_is_full(
    flooded: Flooded,
) -> None:
    """Also by those whom it cannot reach itself, and whom gossip has not told."""
    swarm, client = flooded.swarm, flooded.swarm.client.member
    with trio.fail_after(180):
        while not flooded.gateway.ready:  # noqa: ASYNC110
            await trio.sleep(0.05)
        right = await flooded.ask()
        served = swarm.nodes[0].served()
        members = [client, *(node.member for node in swarm.nodes)]
        for number in range(MAX_PEERS + 100):
            wall = client.clock.wall()
            other = shapes(served, number)
            said = Announcement(f"evil{number}", 1, wall, wall + 3000, addresses(number), (), other, "")
            for member in members:
                member.directory.take(said, b"evil%d" % number, member.now(), wall)
        assert len(client.directory) > 3000
        newcomer = swarm.world.network()
        swarm.world.cut.add(frozenset((newcomer.peer, client.network.peer)))
        await flood(flooded)
        swarm.world.peers.pop(newcomer.peer)  # add_node makes its own
        make = swarm.world.network
        swarm.world.network = lambda: swarm.world.peers.setdefault(newcomer.peer, newcomer)  # type: ignore[method-assign]
        await swarm.add_node(Span(0, 6))
        swarm.world.network = make  # type: ignore[method-assign]
        began = trio.current_time()
        while client.directory.get(newcomer.peer) is None:
            await client.wait_changed()
        assert trio.current_time() - began < 20
        assert await flooded.ask() == right


async def test_27_who_announces_our_model_in_another_shape_is_not_heard(flooded: Flooded) -> None:
    swarm, client = flooded.swarm, flooded.swarm.client.member
    with trio.fail_after(30):
        while not flooded.gateway.ready:  # noqa: ASYNC110
            await trio.sleep(0.05)
        await flooded.http.get("/v1/models")
        wall = client.clock.wall()
        for number, lie in enumerate(({"n_blocks": 16384}, {"hidden_size": 1}, {"vocab_size": 1})):
            served = msgspec.structs.replace(swarm.nodes[0].served(), **lie)
            said = Announcement(f"evil{number}", 1, wall, wall + 300, (), (), served, "")
            assert not client.directory.take(said, b"evil", client.now(), wall)
        assert (await flooded.http.get("/health")).status_code == 200
        assert swarm.client.coverage(swarm.model.digest) == [1] * 6
        view = (await flooded.http.get("/api/swarm")).json()
        assert {peer["peer"] for peer in view["peers"]} == {network.peer for network in swarm.networks}
