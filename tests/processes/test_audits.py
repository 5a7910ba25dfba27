"""A node process that cheats, found out by the command's own machine and by another node."""

from __future__ import annotations

import json
import sys
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio

from shoal import config, process_environ
from shoal.client.audits.auditors import HERE
from shoal.local.processes import (
    address_of,
    ended_with_us,
    free_ports,
    make_home,
    on_this_machine,
    start,
)
from shoal.models.store.store import ModelStore
from shoal.swarm import membership
from shoal.types import Span

pytestmark = pytest.mark.swarm
SPANS = [Span(0, 3), Span(3, 6), Span(0, 6)]
CHEAT = 1
"""Which of them cheats."""


@asynccontextmanager
async def cheated(home, checkpoint):
    """Node processes of which one computes with noise. Gives their peers and how a client enters."""
    wanted = {"model": str(checkpoint), "format": "int8", "threads": 1}
    settings = on_this_machine(config.load(wanted, {"SHOAL_HOME": str(home)}), "demo")
    await trio.to_thread.run_sync(ModelStore(settings.paths.models).resolve, str(checkpoint))
    swarm = membership.create("demo")
    homes = [home / f"node{place}" for place in range(len(SPANS))]
    ports = free_ports(settings.host, len(SPANS))
    at = [address_of(own, settings.host, port) for own, port in zip(homes, ports, strict=True)]
    async with ended_with_us() as processes:
        for place, (span, own, port) in enumerate(zip(SPANS, homes, ports, strict=True)):
            inside = [sys.executable, "-m", "shoal.testing.cheats", "noise"] if place == CHEAT else []
            others = tuple(one for one in at if one != at[place])
            told = replace(settings, port=port, bootstrap=others)
            await start(told, swarm, span, own, processes, inside=inside)
        with trio.fail_after(120):
            served = [await process.event("serving") for process in processes]
        yield [one["peer"] for one in served], replace(swarm, bootstrap=tuple(at)), settings.paths.models


async def test_a_cheating_process_is_named_and_avoided_from_then_on(tmp_path, checkpoint):
    async with cheated(tmp_path / "nodes", checkpoint) as (peers, swarm, models):
        client = tmp_path / "client"
        make_home(client, models, swarm)
        environ = process_environ.child_environ(
            SHOAL_HOME=str(client), SHOAL_HOST="127.0.0.1", SHOAL_MDNS="0", SHOAL_SWARM="demo",
            SHOAL_PIN=peers[CHEAT],
        )  # fmt: skip
        command = [sys.executable, "-m", "shoal.cli", "run", checkpoint.name, "Name three fish.", "--json"]
        command += ["--protect", "audited", "--audit-budget", "6", "--max-tokens", "24", "--temperature", "0"]

        async def run():
            ran = await trio.run_process(
                command, env=environ, check=False, capture_stdout=True, capture_stderr=True
            )
            assert ran.stdout, ran.stderr.decode()
            return ran.returncode, json.loads(ran.stdout)

        # A client that has just come may not have heard of the one that it would rather have, and where much
        # else runs an audit may not end in time.
        for _ in range(8):
            code, found = await run()
            named = [one for one in found["protection"]["audits"] if one["verdict"] == "cheat"]
            if named:
                break
        (audit,) = named
        assert (code, audit["peer"]) == (1, peers[CHEAT]), found["protection"]
        assert audit["by"] == [HERE, peers[2]]
        code, again = await run()
        assert (code, again["protection"]["level"]) == (0, "audited"), again["protection"]
        assert peers[CHEAT] not in [stage["peer"] for stage in again["route"]]
        assert {one["verdict"] for one in again["protection"]["audits"]} == {"same"}
