"""The files by which nodes of one machine are found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shoal.swarm.local_nodes import RunningNode, node_file, running_nodes

NODE = RunningNode(os.getpid(), "12D3KooW", "home", "fish", "0:10", ("/ip4/127.0.0.1/tcp/1/p2p/12D3KooW",))


def test_a_node_is_found_while_it_runs_and_not_afterwards(tmp_path: Path) -> None:
    with node_file(tmp_path / "nodes", NODE):
        assert running_nodes(tmp_path / "nodes") == [NODE]
    assert running_nodes(tmp_path / "nodes") == []


def test_a_node_that_fails_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), node_file(tmp_path, NODE):
        raise RuntimeError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pid":0,"peer":"","swarm":""}', b"\xff", b"[" * 100_000]
)
def test_a_file_that_says_nothing_is_passed_over(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(content)
    with node_file(tmp_path, NODE):
        assert running_nodes(tmp_path) == [NODE]


@pytest.mark.parametrize("pid", [2**22 + 1, -1, 10**30])
def test_a_process_that_is_gone_is_no_node(pid: int, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f'{{"pid":{pid},"peer":"p","swarm":"home"}}')
    assert running_nodes(tmp_path) == []


def test_no_folder_is_no_node(tmp_path: Path) -> None:
    assert running_nodes(tmp_path / "nowhere") == []
