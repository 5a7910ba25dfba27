"""Ways between homes, with real nodes: better ones are taken under an answer, and lost ones are replaced."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from shoal import config, process_environ
from shoal.local.processes import local_swarm, make_home, on_this_machine
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.natlab.lab import NatLab
from shoal.testing.natlab.nodes import NatSwarm, nat_swarm
from shoal.testing.natlab.sites import LinkQuality, parse_sites
from shoal.types import Span

pytestmark = [pytest.mark.swarm, pytest.mark.alone]
ASKER = Path(__file__).with_name("asker.py")
TOKENS = 150
HALVES = Span(0, 3), Span(3, 6)
TOLD_WITHIN_S = 60.0
BETTER_WITHIN_S = 12.0
OFFLINE_S = 9.0
"""Longer than a channel lives without a word."""
DROPPED_S = 20.0
"""The longest that an answer may stand still when a way is lost, on a busy machine too."""


class Asking:
    """A client in mid-answer."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.token_ids: list[int] = []
        self.at = 0.0
        """When the last token came."""
        self.longest_s = 0.0
        """The longest wait for one since :meth:`forget`."""
        self.ways: dict[str, tuple[str, int]] = {}

    def forget(self) -> None:
        self.longest_s, self.at = 0.0, time.monotonic()

    async def token(self) -> bool:
        """Hear of the next one; whether there was any."""
        assert self.process.stdout
        with trio.fail_after(TOLD_WITHIN_S):
            line = await trio.to_thread.run_sync(self.process.stdout.readline, abandon_on_cancel=True)
        if not line:
            return False
        at, token_ids, self.ways = json.loads(line)
        self.longest_s = max(self.longest_s, at - self.at) if self.at else 0.0
        self.at = at
        self.token_ids += token_ids
        return True

    async def longest_of(self, count: int) -> float:
        """The longest wait for one of the next tokens, in seconds."""
        self.forget()
        for _ in range(count):
            await self.token()
        return self.longest_s

    async def until(self, way: str, peer: str, within_s: float) -> None:
        """Wait for this way to a peer."""
        began = time.monotonic()
        while self.ways.get(peer, ("", 0))[0] != way:
            assert await self.token(), f"the answer ended, and the ways are {self.ways}"
            assert time.monotonic() - began < within_s, self.ways


@asynccontextmanager
async def asking(swarm: NatSwarm, name: str, model: str) -> AsyncGenerator[Asking]:
    _, environ = swarm.client(name)
    argv = [sys.executable, str(ASKER), model, str(TOKENS)]
    started = swarm.lab.host(name).popen(argv, env=environ, stdout=subprocess.PIPE, text=True)
    try:
        yield Asking(started)
    finally:
        started.kill()
        started.wait()


async def ways_from(swarm: NatSwarm, name: str) -> dict[str, str]:
    """Which way leads from a host to each node, by its host, once there is one to each.

    A node behind a router serves some moments before it has a place at a relay and others know of that.
    """
    names = {peer: name for name, peer in swarm.peers.items()}
    until = time.monotonic() + TOLD_WITHIN_S
    while True:
        pinged = (await swarm.shoal(name, "ping"))["peers"]
        ways = {names[one["peer"]]: one["way"] for one in pinged}
        if (ways.keys() == swarm.nodes.keys() and "none" not in ways.values()) or time.monotonic() > until:
            return ways


async def whole_answer(settings: Any, model: str, home: Path) -> list[int]:
    """The tokens of one process that has the whole model."""
    async with local_swarm(on_this_machine(settings, "whole"), HALVES[1].end, 1) as local:
        make_home(home, settings.paths.models, local.membership)
        environ = process_environ.child_environ(**config.to_environ(local.settings), SHOAL_HOME=str(home))
        argv = [sys.executable, str(ASKER), model, str(TOKENS)]
        ran = await trio.run_process(argv, env=environ, capture_stdout=True)
        return [token for line in ran.stdout.splitlines() for token in json.loads(line)[1]]


async def tried(nat_lab: type[NatLab], folder: Path) -> dict[str, Any]:
    """Figures 1 and 2 in small: two public nodes, one behind a cone, one behind UPnP, and two clients."""
    model = str(write_checkpoint(folder / "model", "llama", eos_token_id=None))
    # In int8: the same bits in any cut.
    wanted = {"model": model, "threads": 1, "format": "int8", "mdns": False}
    settings = config.load(wanted, {"SHOAL_HOME": str(folder)})
    expected = await whole_answer(settings, model, folder / "whole-client")
    sites = parse_sites("public,public,cone,cone,upnp,sym", LinkQuality(delay_ms=5))
    spans = {"a": HALVES[0], "b": HALVES[0], "c": HALVES[1], "e": HALVES[0]}
    seen: dict[str, Any] = {"expected": expected}
    with nat_lab(sites) as lab:
        async with nat_swarm(lab, settings, folder, spans) as swarm:
            seen["ways"] = await ways_from(swarm, "f")
            lab.partition("c", "d")
            async with asking(swarm, "d", model) as answer:
                await answer.until("relayed", swarm.peers["c"], TOLD_WITHIN_S)
                lab.heal()
                await answer.until("punched", swarm.peers["c"], BETTER_WITHIN_S)
                for _ in range(10):
                    await answer.token()
                lab.drop_mappings("d")
                seen["dropped_s"] = await answer.longest_of(10)
                while await answer.token():
                    pass
                seen["token_ids"] = answer.token_ids
                seen["moves"] = answer.ways[swarm.peers["c"]][1]
            async with asking(swarm, "f", model) as answer:
                await answer.until("relayed", swarm.peers["c"], TOLD_WITHIN_S)
                relay = await carrying(swarm, answer, "f")
                swarm.nodes[relay].signal(signal.SIGKILL)
                seen["relay_killed_s"] = await answer.longest_of(10)
                lab.offline("f", OFFLINE_S)
                seen["offline_s"] = await answer.longest_of(10)
                while await answer.token():
                    pass
                seen["after_losses"] = answer.token_ids
    return seen


async def carrying(swarm: NatSwarm, answer: Asking, client: str) -> str:
    """The public host over which most of an answer goes, a relay's part and a hop's together."""
    before = {name: swarm.lab.carried(name, client) for name in "ab"}
    for _ in range(5):
        await answer.token()
    return max("ab", key=lambda name: swarm.lab.carried(name, client) - before[name])


def test_better_ways_are_taken_and_lost_ones_replaced_in_mid_answer(
    nat_lab: type[NatLab], tmp_path: Path
) -> None:
    seen = trio.run(partial(tried, nat_lab, tmp_path))
    assert seen["token_ids"] == seen["expected"]
    assert seen["ways"] == {"a": "public", "b": "public", "c": "relayed", "e": "mapped"}
    assert seen["moves"] >= 2
    assert seen["dropped_s"] < DROPPED_S
    assert seen["after_losses"] == seen["expected"]
    assert seen["relay_killed_s"] < DROPPED_S
    assert OFFLINE_S / 2 < seen["offline_s"] < OFFLINE_S + DROPPED_S
