"""The nodes that run on this machine, by the small files that they keep while they do.

They let a client on the same machine find them without any network, and let ``shoal invite`` name them.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct


class RunningNode(Struct, frozen=True):
    """What a serving process writes about itself into ``Paths.nodes``."""

    pid: int
    peer: str
    swarm: str
    model: str = ""
    span: str = ""
    addresses: tuple[str, ...] = ()
    """Multiaddrs of its libp2p host, each with its ``/p2p`` part."""
    figures: str = ""
    """Where it shows its figures and traces, ``http://127.0.0.1:PORT``; empty when nowhere."""


@contextmanager
def node_file(folder: Path, node: RunningNode) -> Generator[None]:
    """Keep the node's file for as long as the block lasts.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{node.pid}.json"
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(node))
    temporary.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def running_nodes(folder: Path) -> list[RunningNode]:
    """The nodes whose process is alive. A file left by one that was killed is passed over."""
    found: list[RunningNode] = []
    for path in sorted(folder.glob("*.json")):
        try:
            node = msgspec.json.decode(path.read_bytes(), type=RunningNode)
        except (OSError, msgspec.DecodeError, RecursionError):
            continue  # gone between the two looks, or not ours: no running node in any case
        if _alive(node.pid):
            found.append(node)
    return found


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True
