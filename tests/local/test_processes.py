"""A swarm on one machine: who serves what, and what happens when a node does not come up."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import OutOfResources, ShoalError, UsageError
from shoal.local.processes import Process, split
from shoal.types import gaps


@given(st.integers(1, 200), st.integers(1, 64))
def test_the_blocks_are_split_evenly_and_completely(n_blocks: int, nodes: int) -> None:
    if nodes > n_blocks:
        with pytest.raises(UsageError, match="cannot be split"):
            split(n_blocks, nodes)
        return
    spans = split(n_blocks, nodes)
    assert len(spans) == nodes
    assert gaps(spans, n_blocks) == []
    assert sum(map(len, spans)) == n_blocks
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


async def saying(code: str, log: Path) -> Process:
    with log.open("wb") as stderr:
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stderr
        )
    return Process(process, log)


async def test_events_are_read_as_they_come(tmp_path: Path) -> None:
    events = ['{"event":"listening","addresses":["/a"]}', '{"event":"other"}', '{"event":"serving","pid":1}']
    process = await saying(f"print(*{events}, sep='\\n')", tmp_path / "log")
    assert (await process.event("listening"))["addresses"] == ["/a"]
    assert (await process.event("serving"))["pid"] == 1
    await process.process.wait()


async def test_the_error_of_a_node_is_passed_on_as_it_is(tmp_path: Path) -> None:
    error = {"code": "out_of_resources", "message": "no room", "check": "c", "next_command": "n"}
    process = await saying(f"print({json.dumps({'error': error})!r})", tmp_path / "log")
    with pytest.raises(OutOfResources, match="no room") as caught:
        await process.event("serving")
    assert (caught.value.check, caught.value.next_command) == ("c", "n")
    await process.process.wait()


async def test_a_node_that_dies_is_quoted(tmp_path: Path) -> None:
    process = await saying("import sys; sys.exit('cannot go on')", tmp_path / "log")
    with pytest.raises(ShoalError, match="exited with code 1: cannot go on"):
        await process.event("serving")
