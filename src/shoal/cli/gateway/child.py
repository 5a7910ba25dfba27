"""A gateway beside a node: a process of its own, started again when it ends."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import trio

from shoal import config, process_environ
from shoal.cli.node.turns import tell
from shoal.cli.output import say
from shoal.config import Settings
from shoal.errors import ShoalError
from shoal.local.processes import Process, end

AGAIN_S = 1.0
LONGEST_AGAIN_S = 60.0
"""Pauses before a gateway that ended is started again: from the one to the other, doubling."""


@asynccontextmanager
async def beside(settings: Settings, *, as_json: bool) -> AsyncGenerator[None]:
    """A gateway in a process of its own while the block runs, so that neither waits for the other's forward.

    Raises:
        ShoalError: it did not come up; the error is its own.
    """
    with TemporaryDirectory(prefix="shoal-") as folder:
        log = Path(folder, "log")
        processes: list[Process] = []
        try:
            process = await _start(settings, log, processes, as_json=as_json)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_keep_up, settings, log, processes, process, as_json)
                yield
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await end(processes)


async def _keep_up(
    settings: Settings, log: Path, processes: list[Process], process: Process, as_json: bool
) -> None:
    """Start the gateway again whenever it has ended: the node serves the swarm meanwhile."""
    pause = AGAIN_S
    while True:
        began = trio.current_time()
        await process.process.wait()
        say(f"note: the gateway exited: {process.last_words() or 'no output'}")
        processes.remove(process)
        if trio.current_time() - began > LONGEST_AGAIN_S:
            pause = AGAIN_S
        while True:
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_AGAIN_S)
            try:
                process = await _start(settings, log, processes, as_json=as_json)
                break
            except ShoalError as error:
                say(f"note: the gateway did not start: {error.message}")


async def _start(settings: Settings, log: Path, processes: list[Process], *, as_json: bool) -> Process:
    paths = settings.paths
    home = {"SHOAL_HOME": str(paths.data)} if paths.config == paths.data else {}
    with log.open("ab") as stderr:
        child = await trio.lowlevel.open_process(
            [sys.executable, "-m", "shoal.cli", "gateway", "--end-with-stdin", "--json"],
            stdin=subprocess.PIPE,  # its end is ours
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=process_environ.child_environ(**config.to_environ(settings), **home),
            process_group=0,  # Ctrl-C is for us, and we end it in order
        )
    process = Process(child, log)
    processes.append(process)
    try:
        said = await process.event("gateway")
    except ShoalError:
        processes.remove(process)
        raise
    tell("gateway", as_json, url=said["url"], peer=said["peer"])
    return process
