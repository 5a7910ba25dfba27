"""`shoal serve --yield pause` on a machine that is wanted for something else: all cores busy, real nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import psutil
import pytest
import trio

from shoal import config, process_environ
from shoal.client.connect import open_swarm
from shoal.local.processes import ended_with_us, local_swarm, make_home, start
from shoal.node.owner.yielding import BUSY_S, QUIET_S
from shoal.types import Span

pytestmark = [pytest.mark.swarm, pytest.mark.alone]
PROMPT = list(range(5, 25))
TOKENS = 64


@asynccontextmanager
async def yielding_nodes(local, folder, spans):
    """Nodes that pause for their owner, beside those that are there."""
    settings = replace(local.settings, yield_to_owner="pause", bootstrap=local.membership.bootstrap)
    async with ended_with_us() as running:
        for number, span in enumerate(spans):
            await start(settings, local.membership, span, folder / f"node{number}", running)
        yield [(await process.event("serving"))["peer"] for process in running]


@contextmanager
def busy_cores():
    """A program for each core that does nothing but take its time, where nobody else asks for it."""
    command = ["nice", "-n", "10", sys.executable, "-c", "while True: pass"]
    programs = [subprocess.Popen(command) for _ in range(psutil.cpu_count() or 1)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


async def become(swarm, peers, share, within_s):
    """Wait until each of these announces this share."""
    with trio.fail_after(within_s):
        while True:
            told = {a.peer: a.served.share for a in swarm.member.alive()}
            if [told.get(peer) for peer in peers] == [share] * len(peers):
                return
            await swarm.member.wait_changed()


async def peers_shown(local, home):
    """What `shoal peers` has."""
    make_home(home, local.settings.paths.models, local.membership)
    shown = await trio.run_process(
        [sys.executable, "-m", "shoal.cli", "peers", "--json", "--swarm", local.membership.name],
        env=process_environ.child_environ(SHOAL_HOME=str(home), SHOAL_HOST="127.0.0.1", SHOAL_MDNS="0"),
        capture_stdout=True,
    )
    return {peer["peer"]: peer for peer in json.loads(shown.stdout)["peers"]}


async def test_sessions_go_on_elsewhere_while_the_machine_is_busy(tmp_path, checkpoint):
    # In int8: the same bits in any cut, of nodes that start soon, being without torch.
    options = {"model": str(checkpoint), "mdns": False, "threads": 1, "format": "int8"}
    settings = config.load(options, {"SHOAL_HOME": str(tmp_path)})
    async with (
        local_swarm(settings, 6, 1) as local,
        yielding_nodes(local, tmp_path, [Span(0, 3), Span(3, 6)]) as owned,
        open_swarm(replace(local.settings, pin=tuple(owned)), local.membership) as swarm,
    ):
        # To start is work too, and each node is something else to the others.
        await become(swarm, owned, 1.0, within_s=QUIET_S + 30)
        async with swarm.session(str(checkpoint), tokens=len(PROMPT) + TOKENS) as session:
            found = [int((await session.step(PROMPT))[-1].argmax())]

            async def decode(count):
                while len(found) < count:
                    found.append(int((await session.step(found[-1:]))[-1].argmax()))

            def through():
                return [hop.address.peer for hop in session.ring.route]

            await decode(TOKENS)
            assert through() == owned
            expected = found[:]  # nobody is busy, and nothing moves
            session.roll_back(0)
            found[:] = [int((await session.step(PROMPT))[-1].argmax())]
            await decode(TOKENS // 4)
            with busy_cores():
                await become(swarm, owned, 0.0, within_s=BUSY_S + 20)
                with trio.fail_after(20):
                    while not session.reroutes:
                        await trio.sleep(0.5)
                        await decode(len(found) + 1)
                await decode(TOKENS // 2)
                assert not {*through()} & {*owned}
                shown = await peers_shown(local, tmp_path / "looking")
                assert [shown[peer]["share"] for peer in owned] == [0.0, 0.0]
            await decode(TOKENS)
        assert found == expected
