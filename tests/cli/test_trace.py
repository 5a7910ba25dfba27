"""`shoal status --trace`: the recent steps of this machine's nodes, asked for over loopback."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from anyio.from_thread import start_blocking_portal

from shoal.cli.status.trace import step_lines
from shoal.metrics.trace import HopTrace, RerouteTrace, Trace, hop_step, ring_step
from shoal.node.endpoint import EndpointPage, show
from shoal.swarm.local_nodes import RunningNode, node_file
from tests.cli.conftest import Shoal

NODE_STEP = hop_step(1.0, b"\xab" * 16, 3, 20, 1, HopTrace("12D3me", "0:10", 4.0, 1.0))
RING_STEP = ring_step(
    1.0,
    b"\xcd" * 16,
    9,
    30,
    1,
    0.012,
    [HopTrace("12D3me", "0:10", 4.0, 1.0), HopTrace("12D3you", "10:30", 4.0, 0.0)],
)


def answer() -> bytes:
    node, client = Trace(), Trace()
    node.step(lambda: NODE_STEP)
    client.step(lambda: RING_STEP)
    client.reroute(RerouteTrace(2.0, "cdcdcdcd", 0.75, ("12D3gone",), "resend"))
    told = {"node": node, "client": client}
    said = {name: {"steps": trace.steps, "reroutes": trace.reroutes} for name, trace in told.items()}
    return msgspec.json.encode({"peer": "12D3me", **said})


@contextmanager
def node_at(folder: Path, body: bytes) -> Generator[None]:
    """A process that shows ``body`` as its traces, and its running-file."""
    pages = {"/trace": EndpointPage(lambda: body, "application/json", local=True)}

    async def go(*, task_status):
        await show(pages, "127.0.0.1", 0, task_status=task_status)

    with start_blocking_portal("trio") as portal:
        future, url = portal.start_task(go)
        with node_file(folder, RunningNode(os.getpid(), "12D3me", "home", figures=url)):
            yield
        future.cancel()


def test_steps_are_shown_hop_by_hop_with_the_losses_they_survived(home: Path, shoal: Shoal) -> None:
    with node_at(home / "nodes", answer()):
        ran = shoal("status", "--trace")
        data = shoal("status", "--trace", "--json").data
    assert ran.code == 0, ran.err
    assert "abababab step 3 at 20, 1 token: 5.00 ms" in ran.out
    assert "cdcdcdcd step 9 at 30, 1 token: 12.00 ms, network 3.00" in ran.out
    assert "10:30  Tench-3you  compute 4.00  waiting 0.00  way 1.00" in ran.out
    assert "lost Ruffe-gone: recovered by resend after 0.75 s" in ran.out
    (told,) = data["nodes"]
    assert told["client"]["steps"][0]["hops"][1]["compute_ms"] == 4.0


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b'{"peer": 7}'])
def test_a_process_that_tells_nothing_is_passed_over(body: bytes, home: Path, shoal: Shoal) -> None:
    with node_at(home / "nodes", body):
        ran = shoal("status", "--trace")
    assert ran.code == 3
    assert "no node of swarm home on this machine has traces" in ran.err


def test_without_a_node_the_next_command_is_named(home: Path, shoal: Shoal) -> None:
    ran = shoal("status", "--trace")
    assert ran.code == 3
    assert "shoal up" in ran.err


def test_a_peers_name_cannot_drive_the_terminal() -> None:
    evil = hop_step(1.0, bytes(16), 1, 0, 1, HopTrace("\x1b[2J", "0:1", 1.0, 0.0))
    assert not any("\x1b" in line for line in step_lines([evil]))
