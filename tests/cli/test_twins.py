"""Two nodes of one machine with one identity: both say so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from shoal.cli.node.twins import LOOK_EVERY_S, warn_of_twins
from shoal.swarm.local_nodes import RunningNode, node_file


async def test_each_of_two_says_once_which_process_the_other_is_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], autojump_clock: MockClock
) -> None:
    mine, theirs = (RunningNode(pid, "12D3KooWtwin", "home") for pid in (os.getpid(), os.getppid()))
    other_swarm = RunningNode(1, "12D3KooWtwin", "office")
    async with trio.open_nursery() as nursery:
        with node_file(tmp_path, mine), node_file(tmp_path, other_swarm):
            nursery.start_soon(warn_of_twins, tmp_path, mine)
            await trio.sleep(3 * LOOK_EVERY_S)
            assert capsys.readouterr().err == ""
            with node_file(tmp_path, theirs):
                await trio.sleep(3 * LOOK_EVERY_S)
                said = capsys.readouterr().err
                assert said.count("warning:") == 1
                assert f"process {theirs.pid} serves with the same identity" in said
                assert "SHOAL_HOME=FOLDER" in said
                nursery.start_soon(warn_of_twins, tmp_path, theirs)
                await trio.sleep(LOOK_EVERY_S)
                assert f"process {mine.pid} serves" in capsys.readouterr().err
        nursery.cancel_scope.cancel()


@pytest.fixture
def autojump_clock() -> MockClock:
    return MockClock(autojump_threshold=0)
