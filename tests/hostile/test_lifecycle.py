"""What happens to a machine (docs/hostile.md 20): its clock, its disk, its files, its ports, its network.

Lost hops (19) are in ``tests/client/test_failover.py`` and in the lab.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from shoal import process_environ
from shoal.errors import BadWeights, PortInUse, ShoalError
from shoal.models.store.store import ModelStore
from shoal.node.endpoint import show
from shoal.swarm.clock import Clock
from shoal.swarm.member import Member
from shoal.testing.checkpoints import write_checkpoint
from shoal.testing.memory import World
from shoal.testing.swarm import memory_swarm
from shoal.types import Span
from tests.hostile.conftest import PIECES, honest
from tests.one_process import KERNELS, OneProcess


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, -1_700_000_000.0])
async def test_20_a_clock_that_jumps_loses_nobody_and_makes_no_ghost(
    tmp_path: Path, checkpoint: Path, whole: OneProcess, jump_s: float
) -> None:
    spans = [Span(0, 3), Span(3, 6), Span(0, 6)]
    async with memory_swarm(
        tmp_path / "home", checkpoint, spans, announce_s=0.4, expiry_s=1.5, **KERNELS
    ) as swarm:
        expected = whole.logits(PIECES)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            await honest(session, PIECES[:3], expected[:3])
            clock = swarm.client.member.clock
            clock._wall = lambda: trio.current_time() + jump_s
            await trio.sleep(2.5)  # longer than what was heard before the jump lives
            await honest(session, PIECES[3:], expected[3:])
        assert len(swarm.client.announcements()) == 3
        swarm.kill(2)
        with trio.fail_after(25):
            while len(swarm.client.announcements()) > 2:  # noqa: ASYNC110
                await trio.sleep(0.05)
        async with swarm.client.session(str(checkpoint), tokens=64) as session:
            await honest(session, PIECES, expected)


@pytest.mark.parametrize("command", [["identity", "create"], ["invite"]])
def test_20_a_full_disk_is_said_in_one_error(tmp_path: Path, command: list[str]) -> None:
    """No file may grow: what a full disk does to whoever writes, on any file system."""
    shell = ["bash", "-c", 'ulimit -f 0; exec "$@"', "-", sys.executable, "-m", "shoal.cli", *command]
    ran = subprocess.run(
        [*shell, "--json"],
        env=process_environ.child_environ(SHOAL_HOME=str(tmp_path / "home")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.returncode in (1, 6), ran.stderr
    error = json.loads(ran.stdout)["error"]
    assert error["code"] in ("failure", "out_of_resources")
    assert "defect" not in error["message"], error
    assert "Traceback" not in ran.stderr


def test_20_half_a_download_is_no_model(tmp_path: Path) -> None:
    folder, store = write_checkpoint(tmp_path / "fish", "llama"), ModelStore(tmp_path / "models")
    store.resolve(str(folder))
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for part in (0, 7, 500, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:part])
        with pytest.raises(BadWeights) as caught:
            store.resolve(str(folder))
        assert caught.value.check
    file.write_bytes(whole)
    assert store.resolve(str(folder)).shape.n_blocks == 6


def test_20_weights_that_changed_on_the_disk_are_another_model(tmp_path: Path) -> None:
    folder, store = write_checkpoint(tmp_path / "fish", "llama"), ModelStore(tmp_path / "models")
    before = store.resolve(str(folder)).digest
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    assert store.resolve(str(folder)).digest != before


async def test_20_a_port_in_use_is_said_before_anything_is_served() -> None:
    (taken,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = taken.socket.getsockname()[1]
    async with taken, trio.open_nursery() as nursery:
        with pytest.raises(PortInUse, match=str(port)) as caught:
            await nursery.start(show, {}, "127.0.0.1", port)
        assert caught.value.next_command


async def test_20_without_a_network_at_first_a_node_finds_its_swarm_later() -> None:
    world = World()
    early, late = world.network(), world.network()
    del world.peers[late.peer]  # not up yet
    steady = Clock(trio.current_time, trio.current_time)

    def member(network: object, *bootstrap: str) -> Member:
        return Member(network, announce_s=0.2, expiry_s=1.0, bootstrap=bootstrap, clock=steady)  # pyright: ignore

    async with trio.open_nursery() as nursery:
        first = member(early, f"/memory/{late.peer}/p2p/{late.peer}")
        with trio.fail_after(15):
            await nursery.start(first.run)  # nobody answers, and that stops nobody
        world.peers[late.peer] = late
        second = member(late)
        await nursery.start(second.run)
        with trio.fail_after(15):
            while late.peer not in {c.peer for c in early.connections()}:  # noqa: ASYNC110
                await trio.sleep(0.05)
        failures: dict[str, ShoalError] = await first.join()
        assert not failures
        nursery.cancel_scope.cancel()
